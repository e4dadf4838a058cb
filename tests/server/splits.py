"""What the tests of splits, promotion and automatic rollback share: versions that fail, and who asks for them."""

import asyncio
from collections.abc import Sequence

import httpx

from prompt_store import Target, version_of
from tests.server.conftest import Running
from tests.server.fakes import BRITTLE, EXPLOSIVE, prompt_bytes

STABLE, OTHER = prompt_bytes(), prompt_bytes(favours=1)
NAN = prompt_bytes(favours=1, bias=BRITTLE)
RAISING = prompt_bytes(favours=1, bias=EXPLOSIVE)


async def split(
    server: Running, *shares: tuple[bytes, int], task_id: str = "sentiment", alias: str = "current"
) -> None:
    """As an operator does: straight into the store, and seen by this server."""
    store = server.apps.service.store
    for data, _ in shares:
        await store.publish(data)
    targets = [Target(version_of(data), weight) for data, weight in shares]
    await store.set_alias(task_id, alias, targets, expected_revision=None, actor="operator")
    await server.apps.service.sync.refresh(task_id)


async def ask(server: Running, number: int, text: str = "x y", task_id: str = "sentiment") -> httpx.Response:
    body = {"task_id": task_id, "input": f"{text} {number}"}
    return await server.public.post("/classify", json=body, headers={"X-Request-Key": f"user-{number}"})


async def ask_many(server: Running, numbers: Sequence[int], text: str = "x y") -> list[httpx.Response]:
    return list(await asyncio.gather(*(ask(server, number, text) for number in numbers)))


async def targets(server: Running, alias: str = "current") -> list[str]:
    record = await server.apps.service.store.task("sentiment")
    return [target.version for target in record.aliases[alias].targets]


async def leads_to(server: Running, data: bytes) -> bool:
    return await targets(server) == [version_of(data)]


async def settled(server: Running) -> None:
    """Whatever was to be checked has been checked."""
    guard = server.apps.service.guard
    while guard._checks:
        await asyncio.wait(guard._checks)
    await asyncio.sleep(0)
