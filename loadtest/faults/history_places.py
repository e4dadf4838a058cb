"""Where a history's store lives, and what can be done to it meanwhile.

Owns: each kind of store on an empty folder, and its faults. Must not know: who uses the store, or for what.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import multiprocessing
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtest.faults.fault_proxy import FaultProxy, Mode
from loadtest.faults.history_writers import Plan, write_and_tell
from loadtest.faults.linearizability import Operation
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.task_model import READS

Fault = Callable[[random.Random], Awaitable[None]]
"""Breaks the store, and returns when it is healed."""


@dataclass(frozen=True)
class Place:
    """A store: `url` is the way that faults may lie on, `sure_url` one that they leave alone.

    `hasty_url` is the way of faults for those who give a call up after a second: a silent network would take up their
    whole history with one call.
    """

    url: str
    hasty_url: str
    sure_url: str
    faults: Mapping[str, Fault]
    operations: list[Operation] = field(default_factory=list)  # of writers that were part of a fault


async def _nothing(rng: random.Random) -> None:
    await asyncio.sleep(0.2 * rng.random())


@asynccontextmanager
async def file_place(folder: Path) -> AsyncIterator[Place]:
    """A store on the disk."""
    url = (folder / "store").as_uri()
    catalogue = folder / "store" / "catalogue.sqlite3"
    operations: list[Operation] = []
    victims = itertools.count()

    def hold(seconds: float) -> None:
        with closing(sqlite3.connect(catalogue, isolation_level=None)) as held:
            held.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            held.execute("ROLLBACK")

    async def lock(rng: random.Random) -> None:
        """Another process keeps the catalogue locked."""
        await asyncio.to_thread(hold, 0.1 + 0.4 * rng.random())

    async def kill(rng: random.Random) -> None:
        """One more process writes, and ends in the middle of it."""
        plan = Plan(f"v{next(victims)}", rng.randrange(1 << 30), math.inf, pause=0.001)
        operations.extend(await asyncio.to_thread(_written_until_killed, url, plan, rng))

    yield Place(url, url, url, {"none": _nothing, "lock": lock, "kill -9": kill}, operations)


def _written_until_killed(url: str, plan: Plan, rng: random.Random) -> list[Operation]:
    """What a process did, and what it had begun when it was killed."""
    calls, later = rng.randint(20, 60), 0.005 * rng.random()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=write_and_tell, args=(url, plan, theirs.send))
    process.start()
    theirs.close()
    operations: dict[str, Operation] = {}
    with suppress(EOFError):
        while True:
            operation = ours.recv()
            operations[operation.name] = operation  # the answered one in place of the one that began
            if len(operations) == calls and operation.answer is None:
                time.sleep(later)  # into the call, or a few calls on
                process.kill()
    process.join()
    if len(operations) < calls:
        raise RuntimeError(f"a writer ended by itself after {len(operations)} calls: {process.exitcode}")
    return [one for one in operations.values() if one.answer is not None or one.call.action not in READS]


@asynccontextmanager
async def redis_place(folder: Path) -> AsyncIterator[Place]:
    """A store in a Redis of its own, which syncs each write before it answers, behind a proxy that breaks."""
    server = RedisProcess(folder, appendfsync="always")
    await asyncio.to_thread(server.start)
    try:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}/0"
            yield Place(url, f"{url}?timeout=1", server.url, _redis_faults(server, proxy))
    finally:
        await asyncio.to_thread(server.stop)


def _redis_faults(server: RedisProcess, proxy: FaultProxy) -> Mapping[str, Fault]:
    async def kill(rng: random.Random) -> None:
        """The process ends at once, is away for a while and starts on what its disk has."""
        await asyncio.to_thread(server.kill)
        proxy.mode = Mode.REFUSE  # as the process would, which listens no more
        await asyncio.sleep(0.3 * rng.random())
        await asyncio.to_thread(server.start)
        proxy.mode = Mode.PASS

    async def pause(rng: random.Random) -> None:
        """The process stands still; what was sent meanwhile is done afterwards."""
        server.pause()
        await asyncio.sleep(0.1 + 0.6 * rng.random())
        server.resume()

    async def broken(mode: Mode, seconds: float) -> None:
        proxy.mode = mode
        await asyncio.sleep(seconds)
        proxy.mode = Mode.PASS
        await proxy.settled()

    async def reset(rng: random.Random) -> None:
        """Every connection is reset, a few times, now and then with no way to a new one for a while."""
        for _ in range(rng.randint(1, 5)):
            await broken(Mode.RESET, rng.choice((0.0, 0.0, 0.3)) * rng.random())
            await asyncio.sleep(0.05 * rng.random())

    async def half_open(rng: random.Random) -> None:
        """Connections carry nothing any more and nobody is told; those of before stay so."""
        await broken(Mode.BLACKHOLE, 0.1 + 0.5 * rng.random())

    async def latency(rng: random.Random) -> None:
        """Replies are late."""
        proxy.delay = 0.02 + 0.2 * rng.random()
        await broken(Mode.LATENCY, 0.3 + 0.5 * rng.random())

    async def late_reset(rng: random.Random) -> None:
        """Replies are late, and then lost: what was asked is done, and nobody is told."""
        proxy.delay = 0.3
        proxy.mode = Mode.LATENCY
        await asyncio.sleep(0.02 + 0.1 * rng.random())
        await broken(Mode.RESET, 0.0)

    async def client_kill(rng: random.Random) -> None:
        """Redis itself closes the connections, those that listen for pushes too."""
        for _ in range(rng.randint(1, 30)):
            await asyncio.to_thread(
                server.run, "CLIENT", "KILL", "TYPE", rng.choice(("normal", "normal", "pubsub"))
            )
            await asyncio.sleep(0.01 * rng.random())

    kinds: dict[str, Fault] = {
        "kill -9": kill,
        "pause": pause,
        "reset": reset,
        "half-open": half_open,
        "latency": latency,
        "lost replies": late_reset,
        "client kill": client_kill,
    }

    async def mixed(rng: random.Random) -> None:
        await kinds[rng.choice(sorted(kinds))](rng)

    return {"none": _nothing, "mixed": mixed, **kinds}


PLACES: Final[Mapping[str, Callable[[Path], AbstractAsyncContextManager[Place]]]] = {
    "file": file_place,
    "redis": redis_place,
}
FAULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "file": ("kill -9", "lock", "none"),
    "redis": (
        "client kill",
        "half-open",
        "kill -9",
        "latency",
        "lost replies",
        "mixed",
        "none",
        "pause",
        "reset",
    ),
}
"""The names of each kind's faults, which are made only with a store."""
