"""Histories of concurrent writers and followers of one store under faults, each checked for linearizability.

Owns: one history from an empty store to its verdict, and the table of many. Must not know: what a fault does, what
makes a history good.

A history's seed decides the fault, its moments and what every writer chooses, so that a failure can be played again;
the interleaving is the machine's own and differs each time.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtest.faults.history_places import FAULTS, PLACES, Place
from loadtest.faults.history_replicas import Replica, Window
from loadtest.faults.history_server import ServerReplica
from loadtest.faults.history_verdict import STALE_SECONDS, History, check, check_replica, check_server
from loadtest.faults.history_writers import TASKS, Plan, make_prompts, write_on
from loadtest.faults.outcome import Outcome
from prompt_store import PromptStore, open_store

WRITERS: Final = 3
REPLICAS: Final = 2
_SETTLE_SECONDS: Final = 60.0  # for the replicas to see the end
_WHOLE: Final = 100  # fewer histories, shorter ones or those of one fault are a part of the experiment
_WRITING: Final = 2.0
_SERVER_EACH: Final = 5  # seeds: so often a server process follows, too
_WANTED: Final = (
    "every history has an order of its calls that explains every answer; each change once in the store's counter and "
    "in its tasks' histories, none lost; what a replica sees never goes back, and shows a write within "
    f"{STALE_SECONDS:g} s of its acknowledgement or of a fault's end; on Redis, in each {_SERVER_EACH}th history, so "
    "do the answers of a server process, all with 200"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The experiment's own options."""
    parser.add_argument("--histories", type=int, default=_WHOLE)
    parser.add_argument("--store", choices=sorted(PLACES), default="redis")
    parser.add_argument("--writing", type=float, default=_WRITING, help="seconds of each history's writes")
    parser.add_argument(
        "--fault",
        choices=sorted({fault for faults in FAULTS.values() for fault in faults}),
        default="",
        help="one fault for every history; left out, the seed decides",
    )


def run(options: argparse.Namespace, console: Console) -> Outcome:
    """Run the histories one after another; odd seeds have writers in processes of their own, even ones in threads.

    Raises:
        ValueError: the store has no such fault.

    """
    if options.fault and options.fault not in FAULTS[options.store]:
        raise ValueError(f"--fault: the {options.store} store has {', '.join(FAULTS[options.store])}")
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
                    server=options.store == "redis" and seed % _SERVER_EACH == 0,
                )
            )
            histories.append(history)
            if history.failures:
                _tell(history, options, console)
    return _outcome(options, histories)


def _outcome(options: argparse.Namespace, histories: Sequence[History]) -> Outcome:
    """The verdict. A part of the experiment is kept under a name of its own."""
    rows = [_row(fault, group) for fault, group in sorted(_by_fault(histories).items())]
    facts = {
        "store": options.store,
        "backbone": "fake" if any(history.answers is not None for history in histories) else "no model",
        "writers": WRITERS,
        "replicas": REPLICAS,
        "tasks": len(TASKS),
        "seconds of writes": options.writing,
        "sights of the replicas": sum(history.sights for history in histories),
        "given up before looking up unknown outcomes": sum(history.undecided for history in histories),
        "histories with a server process": sum(history.answers is not None for history in histories),
        "answers of these": sum(history.answers or 0 for history in histories),
        "failed": {str(history.seed): history.failures for history in histories if history.failures},
    }
    passed = len(histories) == options.histories > 0 and not any(history.failures for history in histories)
    whole = options.histories >= _WHOLE and options.writing >= _WRITING and not options.fault
    name = f"histories-{options.store}{'' if whole else '-part'}"
    return Outcome(name, passed, _WANTED, options.seed, [*rows, _row("all", histories)], facts)


async def make_history(
    store: str,
    seed: int,
    executor: Executor,
    *,
    fault: str = "",
    seconds: float = 2.0,
    calls: int = 200,
    server: bool = False,
) -> History:
    """One history: an empty store, writers, replicas and faults at once, then quiet and the check.

    With `server`, a server process follows as the replicas do.
    """
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        place = await stack.enter_async_context(PLACES[store](folder))
        faults = sorted(place.faults)
        history = History(seed, fault or faults[seed % len(faults)])
        follower = await _server(stack, place, folder) if server else None
        sure = await _opened(stack, place.sure_url)
        start = (await sure.revision()).number
        replicas = [Replica(await _opened(stack, place.url), f"replica {n}") for n in range(REPLICAS)]
        following = [asyncio.create_task(replica.follow(TASKS)) for replica in replicas]
        browsing = [asyncio.create_task(replica.browse()) for replica in replicas]
        # Where the network falls silent, a call takes a second until it is given up.
        until = time.monotonic() + seconds * (3 if history.fault in ("half-open", "mixed") else 1)
        loop = asyncio.get_running_loop()
        writing = [
            loop.run_in_executor(executor, write_on, place.hasty_url, Plan(f"w{n}", seed, until, calls))
            for n in range(WRITERS)
        ]
        windows = await _break(place, history.fault, rng, until)
        for done in await asyncio.gather(*writing):
            history.operations += done
        history.operations += place.operations
        history.windows = len(windows)
        await _settle(sure, replicas)
        if follower is not None:
            await asyncio.to_thread(follower.settle, (await sure.revision()).number)
        await _end([*following, *browsing])
        await check(history, sure, start)
        for task in (*following, *browsing):
            if not task.cancelled() and (error := task.exception()):
                history.wrong.append(f"a replica ended: {type(error).__name__}: {error}")
        if follower is not None:
            history.events[follower.task] = await sure.history(
                follower.task
            )  # the replicas saw its task, too
            check_server(history, follower, windows)
        for replica in replicas:
            check_replica(history, replica, windows)
    return history


async def _server(stack: AsyncExitStack, place: Place, folder: Path) -> ServerReplica:
    made = await asyncio.to_thread(ServerReplica, place.url, place.sure_url, folder)
    await asyncio.to_thread(made.__enter__)
    stack.callback(made.__exit__)
    return made


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


def _by_fault(histories: Sequence[History]) -> Mapping[str, list[History]]:
    groups: dict[str, list[History]] = {}
    for history in histories:
        groups.setdefault(history.fault, []).append(history)
    return groups


def _row(fault: str, histories: Sequence[History]) -> dict[str, str | int | float]:
    stale = sorted(second for history in histories for second in history.stale)
    raw = sorted(second for history in histories for second in history.raw_stale)
    return {
        "fault": fault,
        "histories": len(histories),
        "operations": sum(len(history.operations) for history in histories),
        "ok": sum(history.count("ok") for history in histories),
        "refused": sum(history.count("refused") for history in histories),
        "unknown": sum(history.count("unknown") for history in histories),
        "violations": sum(bool(history.failures) for history in histories),
        "stale p99, s": _share(stale, 0.99),
        "stale max, s": _share(stale, 1.0),
        # These have the faults in them, which nobody promises anything for.
        "acknowledged to seen p99, s": _share(raw, 0.99),
        "acknowledged to seen max, s": _share(raw, 1.0),
    }


def _share(ordered: Sequence[float], share: float) -> float:
    return round(ordered[int(share * (len(ordered) - 1))], 3) if ordered else 0.0


def _tell(history: History, options: argparse.Namespace, console: Console) -> None:
    replay = (
        f"python -m loadtest.faults histories --store {options.store} --histories 1 --seed {history.seed} "
        f"--writing {options.writing:g}"
    )
    if options.fault:
        replay += f" --fault '{options.fault}'"
    replay += f" --out {shlex.quote(tempfile.gettempdir())}"  # not among the results that are kept
    console.print(
        f"history {history.seed} ({history.fault}) fails; to play it again: {replay}", style="bold red"
    )
    for wrong in history.failures[:10]:
        console.print(wrong, highlight=False, markup=False, soft_wrap=True)
    # Playing it again makes the same choices in another interleaving: this one is kept.
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"histories-{options.store}-{history.seed}-failed.txt"
    since = min((operation.invoked for operation in history.operations), default=0)
    lines = [operation.told(since) for operation in sorted(history.operations, key=lambda one: one.invoked)]
    path.write_text("\n".join([*history.failures, "", *lines, ""]), encoding="utf-8")
    console.print(f"its operations: {path}", highlight=False)
