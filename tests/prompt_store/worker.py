"""A process that uses a store beside the tests' own; run by the fixture `start_worker`.

race URL TASK VERSION ROUNDS    compare-and-set one alias until ROUNDS succeeded; prints what each expected
                                and got
publish URL FILE [DIE_AT]       publish the files in FILE (one hex line each); prints each version when it is
                                acknowledged; with DIE_AT, kill -9 itself before that step on the disk
"""

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from prompt_store import RevisionConflict, Target, open_store


async def race(url: str, task: str, version: str, rounds: int) -> None:
    store = open_store(url)
    print("ready", flush=True)
    sys.stdin.readline()
    won = 0
    while won < rounds:
        aliases = (await store.task(task)).aliases
        expected = aliases["current"].revision if "current" in aliases else 0
        try:
            alias = (
                await store.set_alias(task, "current", [Target(version)], expected_revision=expected)
            ).alias
        except RevisionConflict:
            continue
        won += 1
        print(expected, alias.revision, flush=True)
    await store.aclose()


async def publish(url: str, files: list[bytes], die_at: int | None) -> None:
    if die_at is not None:
        die_before_step(die_at)
    store = open_store(url)
    for data in files:
        published = await store.publish(data)
        print(published.version, flush=True)
    await store.aclose()


def die_before_step(die_at: int) -> None:
    """Kill this process before its n-th write, fsync, rename or SQL statement."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            count()
            return function(*arguments)

        return call

    class Connection(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            if not arguments[0].startswith(("SELECT", "PRAGMA")):  # these write nothing
                count()
            return super().execute(*arguments)

    connect = sqlite3.connect
    sqlite3.connect = lambda *a, **k: connect(*a, factory=Connection, **k)
    os.write, os.fsync, os.replace, os.mkdir = map(counted, (os.write, os.fsync, os.replace, os.mkdir))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "race":
        url, task, version, rounds = arguments
        asyncio.run(race(url, task, version, int(rounds)))
    else:
        url, file, *die_at = arguments
        files = [bytes.fromhex(line) for line in Path(file).read_text().split()]
        asyncio.run(publish(url, files, int(die_at[0]) if die_at else None))
