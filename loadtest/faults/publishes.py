"""Publishes and rollbacks by the thousand, while every task is asked for through a proxy before several servers.

Owns: the experiment. All scores of every answer must be those of the one version that it names; that version must have
been current at that server since the last move that the server is known to have made; and a move must reach the other
servers soon. The servers have slots for fewer prompts than there are, and the proxy sends nothing twice.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import random
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.faults.move_ledger import MoveLedger
from loadtest.faults.movers import Mover, MoveReport, StoreThread
from loadtest.faults.outcome import Outcome
from loadtest.faults.proxy_process import ProxyProcess
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.replicas import BACKBONES, replicas
from loadtest.faults.spread import Spread, SpreadReport
from loadtest.faults.steady_load import LEAST_SENT, LoadReport, Question, Reply, SteadyLoad
from loadtest.faults.told_answers import ToldTasks, choices
from loadtest.http_client import percentile
from loadtest.ports import free_ports

SOON = 2.0
"""Seconds within which a move is to be seen at every server."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--moves", type=int, default=10_000)
    parser.add_argument("--movers", type=int, default=4, help="operators at once")
    parser.add_argument(
        "--direct", type=float, default=0.15, help="share of moves made in the store directly"
    )
    parser.add_argument(
        "--probe", type=float, default=0.1, help="share of moves whose way to the other servers is timed"
    )
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--backbone", choices=BACKBONES, default="fake")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument(
        "--rate", type=float, default=200.0, help="requests a second; 0: all that are answered"
    )
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--room", type=float, default=0.5, help="share of the tasks' prompts that a replica has slots for"
    )


def run(options: argparse.Namespace, console: Console) -> Outcome:
    """Make the moves under load and count what was wrong."""
    tasks, ledger = ToldTasks(options.tasks, options.backbone, seed=options.seed), MoveLedger()
    moved, spread_report, last_look = MoveReport(), SpreadReport(), SpreadReport()
    chosen = choices(options.tasks, options.seed)

    def ask(number: int) -> Question:
        task = chosen[number % len(chosen)]
        return Question(tasks.body(task, number), (task, number, ledger.reached(task)))

    def check(reply: Reply) -> str | None:
        task, number, reached = reply.question.about
        told = tasks.read(task, number, reply.body)
        if isinstance(told, str):
            return told
        return ledger.answered(task, reply.replica, reached, told.version)

    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(RedisProcess(scratch / "redis"))
        for task, version in enumerate(tasks.fill(redis.url)):
            ledger.begin(task, version)
        running = stack.enter_context(
            replicas(
                options.replicas,
                redis.url,
                scratch,
                backbone=options.backbone,
                flags=tasks.flags(options.room),
            )
        )
        ports = {replica.name: replica.port for replica in running}
        proxy = stack.enter_context(ProxyProcess(scratch / "proxy", free_ports(1)[0], ports, retries=False))
        direct = stack.enter_context(contextlib.closing(StoreThread(redis.url)))
        for replica in running:
            proxy.wait_until(replica.name, "UP")
        pairs = [
            (
                Mover(
                    range(at, options.tasks, options.movers),
                    tasks,
                    ledger,
                    running,
                    direct,
                    moved,
                    direct_share=options.direct,
                    seed=options.seed * 1000 + at,
                ),
                Spread(running, tasks, ledger, spread_report),
            )
            for at in range(options.movers)
        ]
        load = SteadyLoad(proxy.url, ask, check, rate=options.rate, connections=options.connections)
        began = time.monotonic()
        with load:
            _make_moves(options, pairs, console)
        seconds = time.monotonic() - began
        stale = _stale(Spread(running, tasks, ledger, last_look), ledger, options.tasks)
        behind = proxy.counts()
        evicted = {
            replica.name: int(replica.metrics(tier="device")["promptmux_tier_evictions_total"])
            for replica in running
        }
    return _outcome(options, load.report, moved, spread_report, last_look, stale, seconds, behind, evicted)


def _make_moves(options: argparse.Namespace, pairs: list[tuple[Mover, Spread]], console: Console) -> None:
    """All moves, by all movers at once."""
    left = itertools.count()
    columns = (TextColumn("moves"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    broken: list[BaseException] = []
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("", total=options.moves)

        def work(mover: Mover, spread: Spread, rng: random.Random) -> None:
            try:
                while not broken and next(left) < options.moves:
                    move = mover.move()
                    # The task's next move waits until this one was seen everywhere; the other movers' do not.
                    if move is not None and rng.random() < options.probe:
                        spread.wait(
                            move.task, move.version, move.at, but=move.replica.name if move.replica else ""
                        )
                    progress.advance(shown)
            except BaseException as error:
                broken.append(error)
            finally:
                mover.close()
                spread.close()

        threads = [
            threading.Thread(target=work, args=(*pair, random.Random(at)), daemon=True)
            for at, pair in enumerate(pairs)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():  # in turns, so that ctrl-C is heard
                    thread.join(0.2)
        except BaseException as error:
            broken.append(error)  # for the movers: what they work with is about to end
            for thread in threads:
                thread.join(2.0)
            raise
    if broken:
        raise broken[0]


def _stale(spread: Spread, ledger: MoveLedger, count: int) -> list[str]:
    """Servers and tasks that do not answer with the last version soon after the last move."""
    began = time.monotonic()
    with contextlib.closing(spread):
        # SOON is one for all tasks together: whoever is asked first after it has this one answer.
        return [
            f"{name}: task {task}"
            for task in range(count)
            for name in spread.wait(task, ledger.current(task), began, patience=SOON)
        ]


def _outcome(
    options: argparse.Namespace,
    load: LoadReport,
    moved: MoveReport,
    spread: SpreadReport,
    last_look: SpreadReport,
    stale: list[str],
    seconds: float,
    behind: dict[str, dict[str, int]],
    evicted: dict[str, int],
) -> Outcome:
    made, times = moved.made.total(), sorted(spread.seconds)
    wrong = [*spread.wrong, *last_look.wrong]
    figures: dict[str, float] = {
        "moves made": made,
        **{f"of them: {kind}": count for kind, count in sorted(moved.made.items())},
        "moves failed": len(moved.failures),
        "moves a second": round(made / seconds, 1),
        "requests": load.answered + load.failed,
        "failed requests": load.failed,
        "wrong answers": load.wrong + len(wrong),
        "answers a second": round(load.rate, 1),
        **{f"latency {name}": value for name, value in load.latency().items()},
        "ways to another server timed": len(times),
        **{
            f"seconds to another server, {name}": round(percentile(times, share), 3)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0))
        },
        "answers looked at after the last move": last_look.asked,
        "tasks that stayed behind": len(stale),
        "prompts that gave up their slot": sum(evicted.values()),
        **{
            f"{name} by the proxy": sum(count[name] for count in behind.values())
            for name in ("retries", "redispatches")
        },
    }
    sent_twice = figures["retries by the proxy"] + figures["redispatches by the proxy"]
    kinds = {
        kind: {
            "p50_ms": round(percentile(took, 0.5) * 1e3, 1),
            "p99_ms": round(percentile(took, 0.99) * 1e3, 1),
        }
        for kind, took in ((kind, sorted(took)) for kind, took in moved.seconds.items())
    }
    return Outcome(
        name="publishes" if options.backbone == "fake" else f"publishes-{options.backbone}",
        passed=made == options.moves > 0
        and last_look.asked >= options.tasks * options.replicas > 0
        and not (load.short or load.failed or load.wrong or wrong or stale or sent_twice)
        and all(load.by_replica[name] and evicted[name] for name in evicted)
        and max(times, default=math.inf) <= SOON,
        wanted=f"every move made, {LEAST_SENT:.0%} or more of the requests sent that the rate asks for, 0 failed, "
        f"0 wrong answers, also after the last move, at every server within {SOON:g} s, slots given to others at "
        "every server, nothing sent twice by the proxy",
        seed=options.seed,
        rows=[{"figure": name, "value": value} for name, value in figures.items()],
        facts={
            **{name: value for name, value in vars(options).items() if name not in ("name", "out")},
            "seconds": round(seconds, 1),
            "milliseconds_of_a_move": kinds,
            "answers_by_replica": dict(load.by_replica),
            "gave_up_their_slot": evicted,
            "problems": dict(load.problems),
            "examples": [*load.examples, *wrong[:20], *moved.failures[:20], *stale[:20]],
        },
    )
