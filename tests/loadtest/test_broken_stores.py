"""Stores that break the contract in ways that only concurrency shows: the histories' check catches each."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.faults.history_verdict import History, check
from loadtest.faults.history_writers import Plan, write
from prompt_store import (
    Durability,
    Event,
    FileStore,
    Moved,
    Published,
    Receipt,
    Revision,
    RevisionConflict,
    StoreUnavailable,
    Target,
    TaskRecord,
    decode_prompt,
    version_of,
)


class Sometimes(FileStore):
    """Misbehaves at every third occasion."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._occasions = 0

    def now(self) -> bool:
        self._occasions += 1
        return self._occasions % 3 == 0


class ChecksThenActs(Sometimes):
    """Compares and sets in two steps: between them, another writer's update is lost."""

    async def set_alias(
        self,
        task_id: str,
        alias: str,
        targets: Sequence[Target],
        *,
        expected_revision: int | None,
        **more: Any,
    ) -> Moved:
        aliases = (await self.task(task_id)).aliases
        current = aliases[alias].revision if alias in aliases else 0
        if expected_revision not in (None, current):
            raise RevisionConflict("moved", current=current)
        await asyncio.sleep(0.005)
        return await super().set_alias(task_id, alias, targets, expected_revision=None, **more)


class LetsTwoWin(Sometimes):
    """Tries again at the revision that the conflict names."""

    async def set_alias(self, *call: Any, expected_revision: int | None, **more: Any) -> Moved:
        try:
            return await super().set_alias(*call, expected_revision=expected_revision, **more)
        except RevisionConflict as conflict:
            return await super().set_alias(*call, expected_revision=conflict.current, **more)


class TakesItBack(Sometimes):
    """Acknowledges a move and then loses it."""

    async def set_alias(self, *call: Any, **more: Any) -> Moved:
        moved = await super().set_alias(*call, **more)

        def lose(catalogue: Any) -> None:
            with catalogue._transaction("BEGIN IMMEDIATE"):
                catalogue._db.execute("DELETE FROM aliases WHERE revision = ?", (moved.alias.revision,))

        if self.now():
            await self._write(lose)
        return moved


class AcknowledgesFirst(Sometimes):
    """Acknowledges a publish, with the revision it is going to have, and writes it a little later."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._writing: list[asyncio.Task[Published]] = []

    async def publish(self, data: bytes, **more: Any) -> Published:
        stand = await self.revision()
        task = decode_prompt(data).manifest.task_id
        self._writing.append(asyncio.create_task(self._late(data, **more)))
        ahead = replace(stand, number=stand.number + 1)
        return Published(ahead, Durability("always"), task, version_of(data), created=True)

    async def _late(self, data: bytes, **more: Any) -> Published:
        await asyncio.sleep(0.02)
        return await super().publish(data, **more)

    async def aclose(self) -> None:
        await asyncio.gather(*self._writing)
        await super().aclose()


class ReadsACopy(Sometimes):
    """Answers reads from a copy that may be 30 ms old."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._copies: dict[str, tuple[float, TaskRecord]] = {}

    async def task(self, task_id: str) -> TaskRecord:
        read, record = self._copies.get(task_id, (-math.inf, None))
        if record is None or time.monotonic() - read > 0.03:
            record = await super().task(task_id)
            self._copies[task_id] = time.monotonic(), record
        return record


class ReadsInTwoSteps(Sometimes):
    """Reads versions and aliases one after the other."""

    async def task(self, task_id: str) -> TaskRecord:
        first = await super().task(task_id)
        await asyncio.sleep(0.005)
        return replace(first, aliases=(await super().task(task_id)).aliases)


class CountsTwice(Sometimes):
    """Gives two changes the same revision."""

    async def delete_version(self, *call: Any, **more: Any) -> Receipt:
        done = await super().delete_version(*call, **more)
        return replace(done, revision=Revision(done.revision.epoch, done.revision.number - 1))


class TriesAgain(Sometimes):
    """Sends a publish twice, as clients do that lose an answer, and tells what the second came to."""

    async def publish(self, data: bytes, **more: Any) -> Published:
        await super().publish(data, **more)
        return await super().publish(data, **more)


class SetsTwice(Sometimes):
    """The same with an alias, and then does not know."""

    async def set_alias(self, *call: Any, expected_revision: int | None, **more: Any) -> Moved:
        moved = await super().set_alias(*call, expected_revision=expected_revision, **more)
        if expected_revision is None:
            await super().set_alias(*call, expected_revision=None, **more)
            raise StoreUnavailable("no answer")
        return moved


class RefusesAfterwards(Sometimes):
    """Says conflict, and has made the change."""

    async def set_alias(self, *call: Any, **more: Any) -> Moved:
        moved = await super().set_alias(*call, **more)
        if self.now():
            raise RevisionConflict("moved", current=moved.alias.revision)
        return moved


class ForgetsAnEvent(Sometimes):
    """Leaves a change out of its history."""

    async def history(self, task_id: str, *, limit: int = 100) -> tuple[Event, ...]:
        return (await super().history(task_id, limit=limit))[1:]


class LosesItsHistory(Sometimes):
    """Comes back as another store."""

    async def delete_alias(self, *call: Any, **more: Any) -> Receipt:
        done = await super().delete_alias(*call, **more)
        return replace(done, revision=Revision("another", done.revision.number))


class LosesAnswers(Sometimes):
    """Keeps the contract: nobody is told, half of the time after it was done."""

    async def set_alias(self, *call: Any, **more: Any) -> Moved:
        if self.now():
            raise StoreUnavailable("before")
        moved = await super().set_alias(*call, **more)
        if self.now():
            raise StoreUnavailable("after")
        return moved


async def wrong_with(kind: type[FileStore], folder: Path, seed: int) -> list[str]:
    """What the check finds in a short history of three writers on stores of this kind."""
    sure = kind(folder) if kind is ForgetsAnEvent else FileStore(folder)
    stores = [kind(folder) for _ in range(3)]
    done = await asyncio.gather(
        *(write(store, Plan(f"w{n}", seed, math.inf, 35, 0.004)) for n, store in enumerate(stores))
    )
    for store in stores:
        await store.aclose()
    history = History(seed, "none", [operation for list_ in done for operation in list_])
    await check(history, sure, 0)
    await sure.aclose()
    return history.wrong


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (ChecksThenActs, "no order"),
        (LetsTwoWin, "no order"),
        (TakesItBack, "no order"),
        (AcknowledgesFirst, "no order"),
        (ReadsACopy, "no order"),
        (ReadsInTwoSteps, "no order"),
        (CountsTwice, "two changes have revision"),
        (TriesAgain, "no order"),
        (SetsTwice, "happened twice"),
        (RefusesAfterwards, "is of no such call"),
        (ForgetsAnEvent, "without one"),
        (LosesItsHistory, "history was lost"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_a_broken_store_is_caught(kind: type[FileStore], said: str, tmp_path: Path) -> None:
    for seed in range(5):  # what takes a race may take a second history
        if wrong := await wrong_with(kind, tmp_path / str(seed), seed):
            break
    assert any(said in one for one in wrong), "\n".join(wrong)


@pytest.mark.parametrize("kind", [FileStore, LosesAnswers])
async def test_a_store_that_keeps_the_contract_is_not(kind: type[FileStore], tmp_path: Path) -> None:
    assert await wrong_with(kind, tmp_path, 0) == []
