"""Histories of concurrent writers and followers of one store under faults, each checked for linearizability.

Owns: one history from an empty store to its verdict, and the table of many. Must not know: what a fault does, what
makes an order of calls fit.

A history's seed decides the fault, its moments and what every writer chooses, so that a failure can be played again;
the interleaving is the machine's own and differs each time.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtest.faults.history_places import PLACES, Place
from loadtest.faults.history_replicas import Replica, Window, out_of_order, staleness, torn
from loadtest.faults.history_writers import TASKS, Plan, make_prompts, read_all, write_on
from loadtest.faults.linearizability import (
    LIMIT,
    Operation,
    check_counter,
    check_events,
    check_tasks,
    resolved,
)
from loadtest.faults.outcome import Outcome
from prompt_store import Event, PromptStore, UnknownTask, open_store

WRITERS: Final = 3
REPLICAS: Final = 2
STALE_SECONDS: Final = 2.0
_SETTLE_SECONDS: Final = 10.0  # for the replicas to see the end
_WANTED: Final = (
    "every history has an order of its calls that explains every answer; each change once in the store's counter and "
    "in its tasks' histories, none lost; what a replica sees never goes back, and shows a write within "
    f"{STALE_SECONDS:g} s of its acknowledgement or of the fault's end"
)


@dataclass
class History:
    """What happened in one history, and what is wrong with it."""

    seed: int
    fault: str
    operations: list[Operation] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stale: list[float] = field(default_factory=list)
    sights: int = 0
    undecided: int = 0  # tasks whose search was given up before the unknown outcomes were looked up
    events: dict[str, Sequence[Event]] = field(default_factory=dict)  # what the store's own history tells

    def count(self, kind: str) -> int:
        """How many operations were `ok`, `refused` or `unknown`."""
        return sum(kind == _kind(operation) for operation in self.operations)


def _kind(operation: Operation) -> str:
    if operation.answer is None:
        return "unknown"
    return "refused" if operation.answer.error else "ok"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The experiment's own options."""
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--store", choices=sorted(PLACES), default="redis")
    parser.add_argument("--writing", type=float, default=2.0, help="seconds of each history's writes")
    parser.add_argument("--fault", default="", help="one fault for every history; left out, the seed decides")


def run(options: argparse.Namespace, console: Console) -> Outcome:
    """Run the histories one after another; odd seeds have writers in processes of their own, even ones in threads."""
    histories: list[History] = []
    spawn = multiprocessing.get_context("spawn")  # a fork would take along threads and event loops
    with (
        ThreadPoolExecutor(WRITERS) as threads,
        ProcessPoolExecutor(WRITERS, spawn, initializer=make_prompts) as processes,
    ):
        wait([processes.submit(time.sleep, 1.0) for _ in range(WRITERS)])  # until all have started
        for seed in range(options.seed, options.seed + options.histories):
            history = asyncio.run(
                make_history(
                    options.store,
                    seed,
                    processes if seed % 2 else threads,
                    fault=options.fault,
                    seconds=options.writing,
                )
            )
            histories.append(history)
            if history.wrong:
                _tell(history, options, console)
    rows = [_row(fault, group) for fault, group in sorted(_by_fault(histories).items())]
    facts = {
        "store": options.store,
        "writers": WRITERS,
        "replicas": REPLICAS,
        "tasks": len(TASKS),
        "seconds of writes": options.writing,
        "sights of the replicas": sum(history.sights for history in histories),
        "given up before looking up unknown outcomes": sum(history.undecided for history in histories),
        "failed": {str(history.seed): history.wrong for history in histories if history.wrong},
    }
    passed = not any(history.wrong for history in histories)
    name = f"histories-{options.store}"
    return Outcome(name, passed, _WANTED, options.seed, [*rows, _row("all", histories)], facts)


async def make_history(
    store: str, seed: int, executor: Executor, *, fault: str = "", seconds: float = 2.0, calls: int = 200
) -> History:
    """One history: an empty store, writers, replicas and faults at once, then quiet and the check."""
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        place = await stack.enter_async_context(PLACES[store](folder))
        faults = sorted(place.faults)
        history = History(seed, fault or faults[seed % len(faults)])
        sure = await _opened(stack, place.sure_url)
        start = (await sure.revision()).number
        replicas = [Replica(await _opened(stack, place.url), f"replica {n}") for n in range(REPLICAS)]
        following = [asyncio.create_task(replica.follow(TASKS)) for replica in replicas]
        browsing = [asyncio.create_task(replica.browse()) for replica in replicas]
        until = time.monotonic() + seconds
        loop = asyncio.get_running_loop()
        writing = [
            loop.run_in_executor(executor, write_on, place.url, Plan(f"w{n}", seed, until, calls))
            for n in range(WRITERS)
        ]
        windows = await _break(place, history.fault, rng, until)
        for done in await asyncio.gather(*writing):
            history.operations += done
        history.operations += place.operations
        await _settle(sure, replicas)
        await _end([*following, *browsing])
        await check(history, sure, start)
        for task in (*following, *browsing):
            if not task.cancelled() and (error := task.exception()):
                history.wrong.append(f"a replica ended: {type(error).__name__}: {error}")
        for replica in replicas:
            _check_replica(history, replica, windows)
    return history


async def _opened(stack: AsyncExitStack, url: str) -> PromptStore:
    store = open_store(url)
    stack.push_async_callback(store.aclose)
    return store


async def _break(place: Place, fault: str, rng: random.Random, until: float) -> list[Window]:
    """Break and heal the store until the writers end; when."""
    windows: list[Window] = []
    while True:
        await asyncio.sleep(0.1 + 0.5 * rng.random())
        begin = time.monotonic()
        if begin >= until - 0.1:
            return windows
        await place.faults[fault](rng)
        windows.append(Window(begin, time.monotonic()))


async def _settle(sure: PromptStore, replicas: Sequence[Replica]) -> None:
    """Wait until the replicas have seen everything, or for as long as anybody would."""
    final = await sure.revision()
    with suppress(TimeoutError):
        async with asyncio.timeout(_SETTLE_SECONDS):
            for replica in replicas:
                await replica.has_seen(final)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel the tasks until they end: `asyncio.wait_for` of Python 3.11, which clients use, can swallow one."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=0.5)


async def check(history: History, sure: PromptStore, start: int) -> None:
    """Read the quiet store out, and check what the writers were told against it and against each other."""
    events = history.events
    while True:
        before = await sure.revision()
        reads = await read_all(sure, "end", history.operations)
        for task in TASKS:
            with suppress(UnknownTask):
                events[task] = await sure.history(task, limit=1000)
        if before == await sure.revision():  # else a call that nobody waits for any more took place after all
            break
    history.operations += reads
    final = before.number
    epochs = {o.answer.epoch for o in history.operations if o.answer is not None and o.answer.epoch}
    if not epochs <= {before.epoch}:
        history.wrong.append(f"history was lost: its epochs were {sorted(epochs)}, it ends in {before.epoch}")
    history.wrong += check_counter(history.operations, start, final)
    history.wrong += check_events(history.operations, events, start, final)
    # First by the answers alone; then also with what the store's history says of the unknown outcomes, which is
    # stricter, and decides where too many of them made the first search too long.
    for verdict in check_tasks(history.operations, limit=LIMIT).values():
        history.undecided += verdict.fits is None
        if verdict.fits is False:
            history.wrong.append(verdict.told)
    if not history.wrong:
        known = check_tasks(resolved(history.operations, events)).values()
        history.wrong += [verdict.told for verdict in known if not verdict.fits]


def _check_replica(history: History, replica: Replica, windows: Sequence[Window]) -> None:
    history.wrong += replica.wrong
    history.wrong += out_of_order(replica.name, replica.sights)
    history.wrong += torn(replica.name, replica.pages, history.events)
    history.sights += len(replica.sights) + len(replica.pages)
    for write in history.operations:
        if not write.is_change:
            continue
        stale = staleness(replica.sights, write, windows)
        if stale is None or stale > STALE_SECONDS:
            late = "never" if stale is None else f"after {stale:.2f} s"
            history.wrong.append(f"{replica.name} saw {late}: {write.told(write.invoked)}")
        if stale is not None:
            history.stale.append(stale)


def _by_fault(histories: Sequence[History]) -> Mapping[str, list[History]]:
    groups: dict[str, list[History]] = {}
    for history in histories:
        groups.setdefault(history.fault, []).append(history)
    return groups


def _row(fault: str, histories: Sequence[History]) -> dict[str, str | int | float]:
    stale = sorted(second for history in histories for second in history.stale)
    return {
        "fault": fault,
        "histories": len(histories),
        "operations": sum(len(history.operations) for history in histories),
        "ok": sum(history.count("ok") for history in histories),
        "refused": sum(history.count("refused") for history in histories),
        "unknown": sum(history.count("unknown") for history in histories),
        "violations": sum(bool(history.wrong) for history in histories),
        "stale p99, s": round(stale[int(0.99 * (len(stale) - 1))], 3) if stale else 0.0,
        "stale max, s": round(stale[-1], 3) if stale else 0.0,
    }


def _tell(history: History, options: argparse.Namespace, console: Console) -> None:
    replay = (
        f"python -m loadtest.faults histories --store {options.store} --histories 1 --seed {history.seed}"
    )
    if options.fault:
        replay += f" --fault {options.fault}"
    console.print(
        f"history {history.seed} ({history.fault}) fails; to play it again: {replay}", style="bold red"
    )
    for wrong in history.wrong[:10]:
        console.print(wrong, highlight=False, markup=False, soft_wrap=True)
    # Playing it again makes the same choices in another interleaving: this one is kept.
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"histories-{options.store}-{history.seed}-failed.txt"
    since = min(operation.invoked for operation in history.operations)
    lines = [operation.told(since) for operation in sorted(history.operations, key=lambda one: one.invoked)]
    path.write_text("\n".join([*history.wrong, "", *lines, ""]), encoding="utf-8")
    console.print(f"its operations: {path}", highlight=False)
