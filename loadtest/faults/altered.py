"""Altered bytes of stored prompts: refused, counted, and the old version goes on serving.

Owns: the setting and the result. Must not know: how bytes are altered.

First, versions are published, altered in the store, and `current` is moved to them. Then nothing stays on the device,
and the copies that requests read in its stead, in host memory, on the disk and in the store, are altered under them.
Every answer's scores say which version gave them.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from loadtest.faults.admin_writer import publish
from loadtest.faults.alterations import ALTERATIONS, Folder, Place, RedisBlobs
from loadtest.faults.altered_moves import moves
from loadtest.faults.altered_reads import reads
from loadtest.faults.altered_stage import COPIES, Count, Stage
from loadtest.faults.faulty_server import FAKE, FaultyServer
from loadtest.faults.known_load import KnownLoad
from loadtest.faults.outcome import Outcome
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.told_answers import ToldTasks

STORES: Final = ("file", "redis")
WANTED: Final = (
    "every move to altered bytes refused, counted and told by the admin API, every request meanwhile answered 200 by "
    "the old version; a request that finds altered copies is answered 200 from the next good one, or 503 "
    "prompt_unavailable where none is left, and each altered copy is counted; no wrong answer ever; published again, "
    "the version serves; no pickle loaded, no server ended"
)


def add_options(parser: ArgumentParser) -> None:
    """The experiment's options."""
    parser.add_argument("--tries", type=int, default=3, help="of each alteration")
    parser.add_argument("--stores", nargs="+", default=STORES, choices=STORES)
    parser.add_argument(
        "--only", nargs="+", choices=ALTERATIONS, metavar="ALTERATION", help=", ".join(ALTERATIONS)
    )


def run(options: Namespace, console: Console) -> Outcome:
    """Both parts on each store."""
    chosen = [how for how in ALTERATIONS if not options.only or how in options.only]
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"tries": options.tries}
    passed = bool(chosen and options.stores)
    for name in options.stores if chosen else ():
        with stage(name, chosen, options.tries, options.seed) as one:
            with (
                FaultyServer(FAKE, "--store", one.url, "--cache-dir", str(one.folder / "cache")) as server,
                KnownLoad(server.url, one.tasks) as load,
            ):
                moves(one, server)
                load.pause()  # what hangs now counts, too
                alive, beside = server.alive, load.take()
            alive = reads(one) and alive
            facts[name] = {
                "requests beside the moves": beside.offered,
                "of them failed": dict(beside.failures),
                "of them wrong": beside.wrong[:5],
                "a pickle was loaded": one.trap.exists(),
                "servers alive": alive,
                "why refused": {how: dict(count.codes) for how, count in one.counts.items()},
                "others": {how: dict(count.others) for how, count in one.counts.items() if count.others},
                "wrong": [said for count in one.counts.values() for said in count.wrong][:10],
            }
            passed = passed and alive and not one.trap.exists()
            passed = passed and beside.answered == beside.offered > 0
            passed = passed and all(count.passed(options.tries) for count in one.counts.values())
            rows += [_row(name, how, count, options.tries) for how, count in one.counts.items()]
        console.print(f"{name}: {facts[name]}", highlight=False, markup=False)
    return Outcome("altered", passed, WANTED, options.seed, rows, facts)


@contextlib.contextmanager
def stage(name: str, chosen: Sequence[str], tries: int, seed: int) -> Iterator[Stage]:
    """A store with a task for each try."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="promptmux-altered-")))
        place: Place
        if name == "redis":
            redis = stack.enter_context(RedisProcess(folder / "redis"))
            url, place = redis.url, RedisBlobs(redis)
        else:
            url, place = f"file://{folder / 'store'}", Folder(folder / "store" / "blobs")
        tasks = ToldTasks(len(chosen) * tries * len(COPIES), FAKE, seed=seed)
        publish(url, [tasks.make(task) for task in range(len(tasks.ids))])
        counts = {how: Count() for how in chosen}
        yield Stage(name, url, folder, tasks, place, random.Random(f"{seed} {name}"), counts, tries)


def _row(store: str, how: str, count: Count, tries: int) -> dict[str, Any]:
    return {
        "store": store,
        "alteration": how,
        "moves": count.moves,
        "refused": count.refused,
        "counted": count.counted,
        "old version answered": count.old,
        "serves again": count.healed,
        "after s": count.slowest,
        "reads": count.reads,
        "from a good copy": count.answered,
        "503": count.unavailable,
        "copies": count.altered,
        "found": count.found,
        "wrong": len(count.wrong),
        "passed": "yes" if count.passed(tries) else "no",
    }
