"""Automatic rollback where the store is away, or somebody else moves the alias."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from prompt_store import StoreUnavailable, Target, TaskRecord, version_of
from server.guard import ACTOR
from tests.server.conftest import Eventually, Start
from tests.server.fakes import BRITTLE, prompt_bytes
from tests.server.splits import NAN, OTHER, STABLE, ask, ask_many, leads_to, settled, split, targets


async def test_a_canary_whose_bytes_are_damaged_is_taken_out(
    start: Start, eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prompt_cache._RETRY_FAILED_AFTER", 0.0)
    monkeypatch.setattr("server.guard._LOAD_AGAIN_SECONDS", 0.0)
    async with start(prompt_cache_bytes=0, host_cache_bytes=0) as server:  # loaded anew for every request
        await split(server, (STABLE, 50), (OTHER, 50))
        name = version_of(OTHER)
        (blob,) = (path for path in (tmp_path / "store").rglob(f"*{name}*") if path.is_file())
        blob.chmod(0o600)
        blob.write_bytes(b"damaged")
        await ask_many(server, range(30))
        for number in range(30, 60):
            await ask(server, number)
        await eventually(lambda: leads_to(server, STABLE))
        assert server.counted("auto_rollbacks_total", code="prompt_unavailable") == 1


async def test_a_store_that_is_away_is_no_versions_fault(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prompt_cache._RETRY_FAILED_AFTER", 0.0)
    async with start(prompt_cache_bytes=0, host_cache_bytes=0) as server:
        await split(server, (STABLE, 50), (OTHER, 50))
        store = server.apps.service.store
        real = store.get

        async def down(task_id: str, version: str) -> bytes:
            if version == version_of(OTHER):
                raise StoreUnavailable("down")
            return await real(task_id, version)

        monkeypatch.setattr(store, "get", down)
        answers = await ask_many(server, range(40))
        assert sum(answer.status_code == 503 for answer in answers) > 5
        await settled(server)
        assert len(await targets(server)) == 2


async def test_a_store_that_is_away_gets_it_later(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        await split(server, (STABLE, 50), (NAN, 50))
        store = server.apps.service.store
        real, tries = store.set_alias, 0

        async def down(*_: Any, **__: Any) -> Any:
            nonlocal tries
            tries += 1
            raise StoreUnavailable("down")

        monkeypatch.setattr(store, "set_alias", down)
        for begin in range(0, 40, 4):
            await ask_many(server, range(begin, begin + 4))
        await eventually(lambda: tries >= 2)
        # It holds here, whatever the store says.
        assert {(await ask(server, number)).status_code for number in range(40)} == {200}
        shown = (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"]
        assert shown["quarantined"] == {version_of(NAN): "numerical_error"}
        assert shown["serving"] == [version_of(STABLE)]
        assert len(shown["targets"]) == 2
        monkeypatch.setattr(store, "set_alias", real)
        await eventually(lambda: leads_to(server, STABLE))


async def test_a_task_that_cannot_be_moved_does_not_hold_up_another(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.guard._RETRY_SECONDS", (3600.0,))
    async with start() as server:
        other = [prompt_bytes("other", favours=at, bias=bias) for at, bias in ((0, 2.0), (1, BRITTLE))]
        await split(server, (other[0], 50), (other[1], 50), task_id="other")
        await split(server, (STABLE, 50), (NAN, 50))
        store = server.apps.service.store
        real, tries = store.task, []

        async def task(task_id: str) -> TaskRecord:
            if task_id == "other":
                tries.append(task_id)
                raise StoreUnavailable("down")
            return await real(task_id)

        monkeypatch.setattr(store, "task", task)
        for number in range(40):
            await ask(server, number, task_id="other")
        await eventually(lambda: bool(tries))
        for number in range(40):
            await ask(server, number)
        await eventually(lambda: leads_to(server, STABLE))


async def test_who_puts_a_version_back_before_this_server_has_looked_gets_it_served(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        await split(server, (STABLE, 50), (NAN, 50))
        service = server.apps.service
        both = service.catalogue.targets("sentiment", "current")
        real = service.store.set_alias
        put_back = []

        async def move(task_id: str, alias: str, wanted: Any, *, expected_revision: Any, actor: str) -> Any:
            if actor != ACTOR or put_back:
                return await real(task_id, alias, wanted, expected_revision=expected_revision, actor=actor)
            async with service.sync._tasks._lock(task_id):  # no refresh between the two
                moved = await real(task_id, alias, wanted, expected_revision=expected_revision, actor=actor)
                put_back.append(await real(task_id, alias, both, expected_revision=None, actor="operator"))
            return moved

        monkeypatch.setattr(service.store, "set_alias", move)
        for begin in range(0, 40, 4):
            await ask_many(server, range(begin, begin + 4))
        await eventually(lambda: bool(put_back))
        await settled(server)
        await eventually(lambda: service.guard.quarantined("sentiment", "current") == {})
        assert service.catalogue.targets("sentiment", "current") == both
        assert len(await targets(server)) == 2
        for number in range(40, 80):  # it is on trial as before
            await ask(server, number)
        await eventually(lambda: leads_to(server, STABLE))


async def test_somebody_who_was_faster_is_respected(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        await split(server, (STABLE, 50), (NAN, 50))
        store = server.apps.service.store
        real = store.set_alias
        raced = []

        async def race(task_id: str, alias: str, wanted: Any, *, expected_revision: Any, actor: str) -> Any:
            if actor == ACTOR and not raced:
                raced.append(wanted)
                moved = [Target(version_of(STABLE), 99), Target(version_of(NAN), 1)]
                await real(task_id, alias, moved, expected_revision=None, actor="operator")
            return await real(task_id, alias, wanted, expected_revision=expected_revision, actor=actor)

        monkeypatch.setattr(store, "set_alias", race)
        for begin in range(0, 40, 4):
            await ask_many(server, range(begin, begin + 4))
        await eventually(lambda: leads_to(server, STABLE))
        actors = [event.actor for event in await store.history("sentiment")][:2]
        assert actors == [ACTOR, "operator"]
        assert raced


async def test_two_servers_that_find_the_same_move_it_once(start: Start, eventually: Eventually) -> None:
    async with start() as one, start(task=False) as two:
        await split(one, (STABLE, 50), (NAN, 50))
        await two.apps.service.sync.refresh("sentiment")
        await asyncio.gather(*(ask_many(server, range(30)) for server in (one, two)))
        await eventually(lambda: leads_to(one, STABLE))
        await asyncio.gather(settled(one), settled(two))
        for server in (one, two):
            await eventually(lambda server=server: not server.apps.service.guard._trials.of("sentiment"))
        events = await one.apps.service.store.history("sentiment")
        assert [event.actor for event in events].count(ACTOR) == 1


async def test_servers_do_not_move_an_alias_to_and_fro(start: Start, eventually: Eventually) -> None:
    async with start() as server:
        await split(server, (OTHER, 1))
        # What another server, which saw OTHER fail, does: this one has no reason to think that it was right.
        store = server.apps.service.store
        await store.publish(NAN)
        await store.set_alias(
            "sentiment", "current", [Target(version_of(NAN))], expected_revision=None, actor=ACTOR
        )
        await server.apps.service.sync.refresh("sentiment")
        for number in range(3):
            assert (await ask(server, number)).status_code == 500
        await settled(server)
        await eventually(lambda: not server.apps.service.guard._trials.of("sentiment"))
        assert await leads_to(server, NAN)
        assert (await ask(server, 5)).status_code == 500
