"""Where a history's store lives, and what can be done to it meanwhile.

Owns: each kind of store on an empty folder, and its faults. Must not know: who uses the store, or for what.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Fault = Callable[[random.Random], Awaitable[None]]
"""Breaks the store, and returns when it is healed."""


@dataclass(frozen=True)
class Place:
    """A store: `url` is the way that faults may lie on, `sure_url` one that they leave alone."""

    url: str
    sure_url: str
    faults: Mapping[str, Fault]


async def _nothing(rng: random.Random) -> None:
    await asyncio.sleep(0.2 * rng.random())


@asynccontextmanager
async def file_place(folder: Path) -> AsyncIterator[Place]:
    """A store on the disk. Its fault: another process keeps the catalogue locked for a while."""
    url = (folder / "store").as_uri()

    def hold(seconds: float) -> None:
        with closing(
            sqlite3.connect(folder / "store" / "catalogue.sqlite3", isolation_level=None)
        ) as catalogue:
            catalogue.execute("BEGIN IMMEDIATE")
            threading.Event().wait(seconds)
            catalogue.execute("ROLLBACK")

    async def lock(rng: random.Random) -> None:
        await asyncio.to_thread(hold, 0.1 + 0.4 * rng.random())

    yield Place(url, url, {"none": _nothing, "lock": lock})


PLACES: Final[Mapping[str, Callable[[Path], AbstractAsyncContextManager[Place]]]] = {"file": file_place}
