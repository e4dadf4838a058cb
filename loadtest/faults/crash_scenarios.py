"""What is done to a store while its power may be cut, told call by call.

Owns: the scenarios, and saying `CALL n name` before each call, `ACK n` as soon as it is acknowledged, then
`STATE n {…}`, the store as its readers see it. Must not know: that it is traced, what survives.

The phase `setup` makes what is durable when the part with the power cut (`run`) begins.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.faults.redis_process import RedisProcess
from loadtest.prompts import make_prompt
from prompt_store import BackboneRef, CorruptVersion, PromptStore, Target, encode_prompt, open_store

FILE_STORE = Path("a/store")  # two folders that are not there: both must be made, and last
State = Mapping[str, Any]  # as `look` has it
CHECKPOINT_PAGES = 1000  # SQLite's default: a commit that leaves so many pages in the log copies them back


def small_prompt(task_id: str, seed: int, width: int = 16) -> bytes:
    """A prompt of a few sectors; of many with a larger `width`."""
    shape = BackboneRef(
        name="tiny",
        fingerprint="ab" * 32,
        embedding_width=width,
        hidden_size=8,
        layers=2,
        kv_heads=2,
        head_dim=4,
    )
    return encode_prompt(*make_prompt(task_id, "soft", shape, seed=seed))


async def look(store: PromptStore) -> State:
    """The whole store as a reader sees it; `lost` are the versions whose bytes are not there."""
    tasks, lost = {}, []
    page = await store.list(limit=1000)
    for task in page.tasks:
        aliases = {
            name: [alias.revision, [[target.version, target.weight] for target in alias.targets]]
            for name, alias in task.aliases.items()
        }
        versions = [record.version for record in task.versions]
        tasks[task.task_id] = {"versions": versions, "aliases": aliases}
        for version in versions:
            try:
                await store.get(task.task_id, version)
            except CorruptVersion:
                lost.append(version)
    revision = await store.revision()
    return {"revision": [revision.epoch, revision.number], "tasks": tasks, "lost": lost}


class Diary:
    """Writes the marks: each line is one `write`, and so one moment of the trace."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._calls = 0

    def say(self, line: str) -> None:
        """One mark."""
        os.write(self._file, f"{line}\n".encode())

    async def call(self, store: PromptStore, name: str, call: Awaitable[Any]) -> Any:
        """Await one call of the store, and say when it began, when it was acknowledged, and what came of it."""
        self._calls += 1
        self.say(f"CALL {self._calls} {name}")
        result = await call
        self.say(f"ACK {self._calls}")
        self.say(f"STATE {self._calls} {json.dumps(await look(store))}")
        return result


@dataclass(frozen=True)
class Place:
    """Where the store is, and the Redis that it is in, if it is in one."""

    url: str
    server: RedisProcess | None = None

    def open(self) -> PromptStore:
        """The store, opened once more."""
        return open_store(self.url)


async def everything(diary: Diary, place: Place) -> None:
    """Every kind of write, and the store closed and opened in between."""
    store = place.open()
    await diary.call(store, "open", store.revision())
    first, second = [small_prompt("mood", seed) for seed in (1, 2)]
    old = (await diary.call(store, "publish", store.publish(first))).version
    moved = await diary.call(
        store, "set_alias", store.set_alias("mood", "current", [Target(old)], expected_revision=0)
    )
    new = (await diary.call(store, "publish", store.publish(second))).version
    at = moved.alias.revision
    moving = store.set_alias("mood", "current", [Target(new)], expected_revision=at)
    await diary.call(store, "move_alias", moving)
    await diary.call(store, "publish_again", store.publish(first))
    await diary.call(store, "publish_large", store.publish(small_prompt("topic", 3, width=512)))
    await diary.call(store, "delete_version", store.delete_version("mood", old))
    await diary.call(store, "collect", store.collect(grace=0))
    await diary.call(store, "publish_collected", store.publish(first))
    await store.aclose()
    store = place.open()
    shares = [Target(old, 1), Target(new, 9)]
    await diary.call(store, "share", store.set_alias("mood", "canary", shares, expected_revision=None))
    await diary.call(store, "delete_alias", store.delete_alias("mood", "canary", expected_revision=None))
    await diary.call(store, "delete_task", store.delete_task("topic"))
    await diary.call(store, "collect", store.collect(grace=0))
    await store.aclose()


async def publishes(diary: Diary, place: Place) -> None:
    """The short form: a new store, two versions, and the alias moved from one to the other."""
    store = place.open()
    await diary.call(store, "open", store.revision())
    for seed in (1, 2):
        version = (await diary.call(store, "publish", store.publish(small_prompt("mood", seed)))).version
        moving = store.set_alias("mood", "current", [Target(version)], expected_revision=None)
        await diary.call(store, "move_alias", moving)
    await store.aclose()


async def many_publishes(diary: Diary, place: Place) -> None:
    """Fills SQLite's log to just before it is copied back, and stops as a crash does: the log stays."""
    store, seed = place.open(), 0
    log = FILE_STORE / "catalogue.sqlite3-wal"
    await store.revision()
    while _size(log) < (CHECKPOINT_PAGES - 20) * 4120:
        await store.publish(small_prompt("mood", seed % 7))
        await store.delete_version("mood", (await store.task("mood")).versions[0].version)
        seed += 1
    diary.say(f"STATE 0 {json.dumps(await look(store))}")
    os._exit(0)


async def over_the_checkpoint(diary: Diary, place: Place) -> None:
    """Commits until the log is copied back and begun anew, and some more."""
    store = place.open()
    await diary.call(store, "open", store.revision())
    for seed in range(100, 105):  # new bytes: those of the setup still lie there
        await diary.call(store, "publish", store.publish(small_prompt("mood", seed)))
    os._exit(0)  # a close would copy back once more, which `everything` has


async def bytes_lost(diary: Diary, place: Place) -> None:
    """A store whose blobs were removed behind its back."""
    store = place.open()
    await store.publish(small_prompt("mood", 1))
    shutil.rmtree(FILE_STORE / "blobs")
    shutil.rmtree(FILE_STORE / "tmp")
    diary.say(f"STATE 0 {json.dumps(await look(store))}")
    os._exit(0)


async def bytes_put_back(diary: Diary, place: Place) -> None:
    """The version is published again; the folders were made a moment before by a process that did not get on."""
    for name in ("blobs", "tmp"):
        (FILE_STORE / name).mkdir()
    store = place.open()
    await diary.call(store, "publish_again", store.publish(small_prompt("mood", 1)))
    os._exit(0)


def after_half(folders: int) -> Scenario:
    """Another process was stopped after it made some of a new store's folders, before it synced them."""

    async def scenario(diary: Diary, place: Place) -> None:
        for folder in (FILE_STORE.parent, FILE_STORE, FILE_STORE / "blobs", FILE_STORE / "tmp")[:folders]:
            folder.mkdir()
        store = place.open()
        await diary.call(store, "open", store.revision())
        await diary.call(store, "publish", store.publish(small_prompt("mood", 1)))
        await store.aclose()

    return scenario


async def torn_already(diary: Diary, place: Place) -> None:
    """A first power cut was in the middle of a commit: the log ends in a part of it."""
    store = place.open()
    await store.publish(small_prompt("mood", 1))
    diary.say(f"STATE 0 {json.dumps(await look(store))}")
    log = Path(
        "appendonlydir/appendonly.aof.1.incr.aof" if place.server else f"{FILE_STORE}/catalogue.sqlite3-wal"
    )
    whole = _size(log)
    await store.publish(small_prompt("mood", 2))
    if place.server:
        await store.aclose()
        place.server.kill()
    os.truncate(log, (whole + _size(log)) // 2)
    if not place.server:
        os._exit(0)


async def goes_on(diary: Diary, place: Place) -> None:
    """Mends the log, and publishes."""
    store = place.open()
    await diary.call(store, "open", store.revision())
    for seed in (3, 4):
        await diary.call(store, "publish", store.publish(small_prompt("mood", seed)))
    await store.aclose()


async def opened(diary: Diary, place: Place) -> None:
    """A store that is there and empty."""
    store = place.open()
    await store.revision()
    diary.say(f"STATE 0 {json.dumps(await look(store))}")
    await store.aclose()


async def a_rewrite(diary: Diary, place: Place) -> None:
    """Redis writes its log anew, while versions are published and after."""
    store, server = place.open(), place.server
    assert server is not None
    await diary.call(store, "publish", store.publish(small_prompt("mood", 1)))
    server.run("BGREWRITEAOF")
    await diary.call(store, "publish", store.publish(small_prompt("mood", 2)))
    while server.run("INFO", "persistence")["aof_rewrite_in_progress"]:  # noqa: ASYNC110 — nobody tells
        await asyncio.sleep(0.01)
    await diary.call(store, "publish", store.publish(small_prompt("mood", 3)))
    await store.aclose()


def _size(log: Path) -> int:
    return log.stat().st_size


Scenario = Callable[[Diary, Place], Coroutine[Any, Any, None]]
_IN_REDIS: Mapping[str, Mapping[str, Scenario]] = {
    "everything": {"setup": opened, "run": everything},
    "publishes": {"setup": opened, "run": publishes},
    "cut once already": {"setup": torn_already, "run": goes_on},
    "rewrite": {"setup": opened, "run": a_rewrite},
    "first start": {"run": publishes},
}
SCENARIOS: Mapping[str, Mapping[str, Mapping[str, Scenario]]] = {
    "file": {
        "everything": {"run": everything},
        "publishes": {"run": publishes},
        "checkpoint": {"setup": many_publishes, "run": over_the_checkpoint},
        "cut once already": {"setup": torn_already, "run": goes_on},
        "bytes put back": {"setup": bytes_lost, "run": bytes_put_back},
        **{f"half made, {n}": {"run": after_half(n)} for n in (1, 2, 3, 4)},
    },
    "redis": _IN_REDIS,
    "redis, mended": _IN_REDIS,  # by redis-check-aof before every start
}
