"""What is fetched ahead, against a cache and tiers that only note it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from prompt_store import CorruptVersion, StoreUnavailable, Target
from server.catalogue import Catalogue, ServedTask
from server.warming import Warming


class FakeTiers:
    """A cache and tiers in one. `room` prompts fit on the device; what `errors` holds is raised once each."""

    def __init__(self, room: int, errors: dict[str, list[Exception]] | None = None, *, disk: bool = True):
        self.room, self.errors = room, errors or {}
        self.disk: object = object() if disk else None
        self.loaded: list[str] = []
        self.prefetched: list[str] = []
        self.wants_prefetch = True
        self.refuses: dict[str, int] = {}  # so many times the disk does not take it

    def __contains__(self, version: str) -> bool:
        return version in self.loaded

    @property
    def has_room(self) -> bool:
        return len(self.loaded) < self.room

    def meet(self, version: str) -> None:
        if self.errors.get(version):
            raise self.errors[version].pop()

    @asynccontextmanager
    async def pinned(self, task_id: str, version: str) -> AsyncIterator[None]:
        self.meet(version)
        self.loaded.append(version)
        yield

    async def prefetch(self, task_id: str, version: str) -> bool:
        self.meet(version)
        if self.refuses.get(version, 0):
            self.refuses[version] -= 1
            return False
        self.prefetched.append(version)
        return True


def warming(tiers: Any, refused: Callable[..., None] = lambda *_: None, **tasks: str) -> Warming:
    """Tasks by their versions' names, parted by blanks."""
    catalogue = Catalogue()
    for task_id, versions in tasks.items():
        targets = tuple(map(Target, versions.split()))
        catalogue.put(ServedTask(task_id, 1, {"current": targets}, tuple(versions.split()), 0))
    return Warming(catalogue, tiers, tiers, lambda: False, refused)


async def test_what_has_no_room_on_the_device_goes_to_the_disk() -> None:
    tiers = FakeTiers(room=2)
    await warming(tiers, one="a", two="b", three="c").run()
    assert (tiers.loaded, tiers.prefetched) == (["a", "b"], ["c"])


async def test_every_version_of_a_split_is_fetched() -> None:
    tiers = FakeTiers(room=1)
    await warming(tiers, split="a b", other="c").run()
    assert (tiers.loaded, tiers.prefetched) == (["a"], ["b", "c"])


async def test_what_met_a_store_that_was_away_comes_again() -> None:
    away = StoreUnavailable("away", retry_after=0.0)
    tiers = FakeTiers(room=9, errors={"a": [away, away]})
    await warming(tiers, one="a", two="b").run()
    assert sorted(tiers.loaded) == ["a", "b"]


async def test_a_disk_without_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.warming._NO_ROOM_SECONDS", 0.01)
    tiers = FakeTiers(room=0)
    tiers.wants_prefetch = False
    work = asyncio.create_task(warming(tiers, one="a").run())
    await asyncio.sleep(0.05)
    assert not work.done()
    tiers.wants_prefetch = True
    async with asyncio.timeout(120):
        await work
    assert tiers.prefetched == ["a"]


async def test_what_the_disk_did_not_take_comes_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.warming._NO_ROOM_SECONDS", 0.01)
    tiers = FakeTiers(room=0)
    tiers.refuses = {"a": 3}
    async with asyncio.timeout(120):
        await warming(tiers, one="a", two="b", three="c d").run()
    assert tiers.refuses == {"a": 0}
    assert tiers.prefetched == ["b", "c", "d", "a"]  # it keeps none of the others from the disk


async def test_without_a_disk_it_ends() -> None:
    async with asyncio.timeout(120):
        await warming(FakeTiers(room=0, disk=False), one="a").run()


async def test_what_cannot_be_served_is_said_and_the_next_is_fetched() -> None:
    told: list[tuple[str, str]] = []
    tiers = FakeTiers(room=9, errors={"a": [CorruptVersion("lost")]})
    await warming(tiers, lambda task, version, _: told.append((task, version)), one="a", two="b").run()
    assert (told, tiers.loaded) == ([("one", "a")], ["b"])
