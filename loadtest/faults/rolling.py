"""Replicas behind a real proxy are restarted one after the other, again and again, while a steady load goes on.

Owns: the experiment. A replica is asked to end as an operator or an orchestrator does (SIGTERM), must end with exit
code 0, is started anew, and the next one follows when the proxy sees it. Every request's scores are checked besides.

The proxy sends nothing twice, not even after a refused connection: a replica says that it will leave, the proxy sees
that in time, and there is nothing to send again. With --retries it sends on what a replica has refused or dropped.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.faults.outcome import Outcome
from loadtest.faults.proxy_process import ProxyProcess
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.replicas import BACKBONES, Replica, replicas
from loadtest.faults.steady_load import LEAST_SENT, LoadReport, Question, Reply, SteadyLoad
from loadtest.faults.told_answers import ToldTasks, choices
from loadtest.ports import free_ports


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--rounds", type=int, default=20, help="rolling restarts, each of all replicas")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--backbone", choices=BACKBONES, default="minilm")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument(
        "--rate", type=float, default=10.0, help="requests a second; 0: all that are answered"
    )
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--leave-delay",
        type=float,
        default=1.0,
        help="seconds in which a replica that will end still answers",
    )
    parser.add_argument(
        "--retries",
        action="store_true",
        help="the proxy sends on to another replica what one has refused or dropped",
    )
    parser.add_argument(
        "--room", type=float, default=0.5, help="share of the tasks' prompts that a replica has slots for"
    )
    parser.add_argument(
        "--padding",
        type=int,
        default=0,
        help="bytes that are added to every request, to pass the proxy's buffer",
    )


def run(options: argparse.Namespace, console: Console) -> Outcome:
    """Restart the replicas under load and count what callers saw."""
    tasks = ToldTasks(options.tasks, options.backbone, seed=options.seed)
    with tempfile.TemporaryDirectory() as scratch, RedisProcess(Path(scratch) / "redis") as redis:
        versions = tasks.fill(redis.url)
        chosen = choices(options.tasks, options.seed)
        flags = ("--leave-delay", str(options.leave_delay), *tasks.flags(options.room))

        def ask(number: int) -> Question:
            task = chosen[number % len(chosen)]
            # JSON may have blanks anywhere: a longer request without another meaning.
            return Question(b" " * options.padding + tasks.body(task, number), (task, number))

        def check(reply: Reply) -> str | None:
            task, number = reply.question.about
            told = tasks.read(task, number, reply.body)
            if isinstance(told, str):
                return told
            return None if told.version == versions[task] else f"another version: {told}"

        with (
            replicas(
                options.replicas, redis.url, Path(scratch), backbone=options.backbone, flags=flags
            ) as running,
            ProxyProcess(
                Path(scratch) / "proxy",
                free_ports(1)[0],
                {replica.name: replica.port for replica in running},
                retries=options.retries,
            ) as proxy,
        ):
            for replica in running:
                proxy.wait_until(replica.name, "UP")
            with SteadyLoad(
                proxy.url, ask, check, rate=options.rate, connections=options.connections
            ) as load:
                restarts = _roll(running, proxy, options.rounds, console)
            counts = proxy.counts()
    return _outcome(options, load.report, restarts, counts)


@dataclass(frozen=True)
class _Restart:
    """One restart of one replica. Seconds."""

    exit_code: int
    open: int  # requests that it had as the signal came
    sent: int  # those that the proxy gave it from then on
    out: float  # from the signal until the proxy sends it nothing more
    stop: float  # from the signal until it has ended
    start: float  # until it says that it is ready
    seen: float  # from then until the proxy says so
    memory: int  # bytes, before it was stopped


def _roll(
    running: list[Replica], proxy: ProxyProcess, rounds: int, console: Console
) -> dict[str, list[_Restart]]:
    """The restarts of each replica."""
    restarts: dict[str, list[_Restart]] = {replica.name: [] for replica in running}
    columns = (TextColumn("restarts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("", total=rounds * len(running))
        for _ in range(rounds):
            for replica in running:
                memory = replica.process.resident_bytes()
                given = proxy.counts()[replica.name]["requests"]
                at_work = proxy.open_requests()[replica.name]
                began = time.monotonic()
                replica.ask_to_end()
                out = proxy.wait_until(replica.name, "DOWN")
                sent = proxy.counts()[replica.name]["requests"] - given
                code = replica.ended()
                stop = time.monotonic() - began
                start = replica.start()
                seen = proxy.wait_until(replica.name, "UP")
                restarts[replica.name].append(_Restart(code, at_work, sent, out, stop, start, seen, memory))
                progress.advance(shown)
    return restarts


def _outcome(
    options: argparse.Namespace,
    load: LoadReport,
    restarts: dict[str, list[_Restart]],
    counts: dict[str, dict[str, int]],
) -> Outcome:
    every = [restart for of_one in restarts.values() for restart in of_one]
    bad_exits = sum(restart.exit_code != 0 for restart in every)
    again = {name: sum(count[name] for count in counts.values()) for name in ("retries", "redispatches")}
    figures = {
        "restarts": len(every),
        "exit codes other than 0": bad_exits,
        "requests that a replica had when it was to end, in all": sum(restart.open for restart in every),
        "requests that it was given after that, in all": sum(restart.sent for restart in every),
        "longest until the proxy left it out, s": _longest(restart.out for restart in every),
        "longest stop, s": _longest(restart.stop for restart in every),
        "longest start, s": _longest(restart.start for restart in every),
        "memory of a replica at most, MB": round(_longest(restart.memory / 1e6 for restart in every)),
        "requests": load.answered + load.failed,
        "failed requests": load.failed,
        "wrong answers": load.wrong,
        "answers a second": round(load.rate, 1),
        **{f"latency {name}": value for name, value in load.latency().items()},
        "tried again by the proxy": again["retries"],
        "sent on to another replica": again["redispatches"],
    }
    return Outcome(
        name="-".join(
            [
                "rolling",
                options.backbone,
                *(["retrying"] if options.retries else []),
                *(["long"] if options.padding else []),
            ]
        ),
        passed=not (load.failed or load.wrong or bad_exits or load.short)
        and len(every) == options.rounds * options.replicas > 0
        and any(restart.open or restart.sent for restart in every)
        and all(load.by_replica[name] for name in restarts)
        and (options.retries or not any(again.values())),
        wanted=f"all restarts made, {LEAST_SENT:.0%} or more of the requests sent that the rate asks for, 0 failed, "
        "0 wrong scores, every exit code 0, requests at replicas that were to end"
        + ("" if options.retries else ", nothing sent twice by the proxy"),
        seed=options.seed,
        rows=[{"figure": name, "value": value} for name, value in figures.items()],
        facts={
            "rounds": options.rounds,
            "replicas": options.replicas,
            "backbone": options.backbone,
            "tasks": options.tasks,
            "offered_per_second": options.rate,
            "connections": options.connections,
            "padding_bytes": options.padding,
            "leave_delay": options.leave_delay,
            "room": options.room,
            "proxy_sends_again": options.retries,
            "load_seconds": round(load.seconds, 1),
            "requests_by_replica": dict(load.by_replica),
            "problems": dict(load.problems),
            "examples": load.examples,
            "restarts": {name: [asdict(restart) for restart in of_one] for name, of_one in restarts.items()},
        },
    )


def _longest(seconds: Iterable[float]) -> float:
    return round(max(seconds, default=0.0), 2)
