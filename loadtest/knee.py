"""`python -m loadtest.knee`: how much a server carries, its knee, by an open loop: a table, JSON and a picture.

**The knee** is the highest offered rate, of Poisson arrivals, at which p99 stays within a bound and the goodput
(answers with 200 a second) keeps up with what is offered. That is the Server scenario of MLPerf Inference (Reddi et
al., ISCA 2020: queries a second of a Poisson process with a latency bound at a tail percentile) and, for the search by
trials of rising and then bisected rates, the throughput of RFC 2544, section 26.1 (the fastest rate at which nothing
that was offered is missing). Latency counts from when a request should have been sent, and one without an answer took
for ever: what a closed loop hides (coordinated omission). The bench's "knee" is another figure: its closed-loop
throughput, see docs/decisions/0011.

Levels rise by a factor until one fails; then the gap is halved (geometrically) until it is narrow. A level is sent
several times and its medians count. It is long enough for a thousand requests, where `--longest` lets it. When the
generator itself falls behind, the search ends and says so: then the knee is its own, not the server's (exit code 1).

Owns: the search and what a level is. Must not know: how it is drawn (`knee_report.py`), or what the requests mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtest import http_client, knee_report, target, workload
from loadtest.server_process import NotStarted, leave_on_sigterm

_REQUESTS: Final = 8192  # written beforehand, then again from the start
_ENOUGH: Final = 1000  # requests of a level: ten of them are beyond its p99
_SETTLE: Final = 0.2  # of a level: its beginning finds an empty queue
_LEAST_RATE: Final = 0.5
_LATE: Final = 0.25  # of the bound on p99: a generator that lags so much measures itself
_WAS_LATE: Final = "the generator was late"


@dataclass(frozen=True)
class Trial:
    """One stretch at one rate. Seconds everywhere; what is not answered took for ever."""

    rate: float  # that was asked for
    offered: float  # requests a second that were due, by the arrivals drawn
    goodput: float  # answers with 200 a second, in the same time
    p50: float
    p95: float
    p99: float
    refused: int
    failed: int  # lost, unanswered or with another status; refusals apart
    lag_p99: float  # of the generator, with a connection at hand
    generator_cpu: float  # of one core

    @property
    def kept(self) -> float:
        """Which part of what was offered came back in time to count."""
        return self.goodput / self.offered if self.offered else 0.0


@dataclass(frozen=True)
class Level:
    """The trials of one rate; their medians decide."""

    rate: float
    trials: tuple[Trial, ...]
    good: bool
    why: str  # it is not good; empty if it is

    def median(self, name: str) -> float:
        """The trials' middle one."""
        return statistics.median(getattr(trial, name) for trial in self.trials)


@dataclass(frozen=True)
class Knee:
    """What a search found: the knee lies between `rate`, which is carried, and `beyond`, which is not."""

    rate: float | None  # None: not even the lowest rate was carried
    beyond: float | None  # None: all that was asked for was carried
    levels: tuple[Level, ...]
    limit: str  # what ended the search: "server", "generator" or "--most"


@dataclass(frozen=True)
class Rules:
    """When a level is good, and how the search goes."""

    p99: float  # seconds
    goodput: float = 0.95  # of what is offered
    first: float = 10.0
    most: float = 20_000.0
    factor: float = 1.5
    gap: float = 1.05  # between the rates on both sides of the knee, at the end
    repeats: int = 3


def judged(rate: float, trials: tuple[Trial, ...], rules: Rules) -> Level:
    """The level with its verdict."""
    level = Level(rate, trials, False, "")
    p99, kept = level.median("p99"), level.median("kept")
    if level.median("lag_p99") > _LATE * rules.p99:
        why = _WAS_LATE
    elif kept < rules.goodput:
        why = f"only {kept:.0%} of the offered was answered in time"
    elif p99 > rules.p99:
        why = f"p99 {p99 * 1000:,.0f} ms" if math.isfinite(p99) else "p99 is without an answer"
    else:
        return replace(level, good=True)
    return replace(level, why=why)


def search(
    run: Callable[[float], Trial], rules: Rules, *, told: Callable[[Level], object] = lambda _: None
) -> Knee:
    """Rise until a level fails, then halve the gap; `run` sends one trial, `told` hears of each level."""
    levels: list[Level] = []

    def tried(rate: float) -> Level:
        level = judged(rate, tuple(run(rate) for _ in range(rules.repeats)), rules)
        levels.append(level)
        told(level)
        return level

    good, bad, limit, rate = None, None, "server", rules.first
    while bad is None or good is None:
        level = tried(rate)
        if level.good:
            good = rate
            if bad is None and rate >= rules.most:
                limit = "--most"
                break
            rate = min(rules.most, rate * rules.factor)
        else:
            bad = rate
            if level.why == _WAS_LATE or (good is None and rate <= _LEAST_RATE):
                break
            rate = max(_LEAST_RATE, rate / rules.factor)
    while levels[-1].why != _WAS_LATE and good is not None and bad is not None and bad / good > rules.gap:
        rate = math.sqrt(good * bad)
        good, bad = (rate, bad) if tried(rate).good else (good, rate)
    if levels[-1].why == _WAS_LATE:
        limit = "generator"
    return Knee(good, bad, tuple(sorted(levels, key=lambda level: level.rate)), limit)


def trial(
    url: str,
    written: Iterator[bytes],
    rate: float,
    seconds: float,
    *,
    connections: int = 256,
    seed: int = 0,
    patience: float = 5.0,
) -> Trial:
    """Send one stretch."""
    times = http_client.arrivals(rate, seconds, seed=seed) or [0.0]
    load = http_client.open_loop(
        url, written, times, connections=connections, patience=patience, keep_trace=True
    )
    begin = _SETTLE * seconds
    due = [sent for sent in load.trace if sent.intended >= begin]
    ended = sum(
        sent.outcome == "answered" and begin <= sent.intended + sent.seconds < seconds for sent in load.trace
    )
    answered = sorted(sent.seconds for sent in due if sent.outcome == "answered")
    half, most, last = (
        http_client.percentile(answered, share, count=len(due)) for share in (0.5, 0.95, 0.99)
    )
    counted = seconds - begin
    return Trial(
        rate=rate,
        offered=len(due) / counted,
        goodput=ended / counted,
        p50=half,
        p95=most,
        p99=last,
        refused=load.refused,
        failed=load.failed - load.refused + load.unanswered,
        lag_p99=http_client.percentile(load.lags, 0.99) if load.lags else 0.0,
        generator_cpu=load.cpu_seconds / load.seconds,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m loadtest.knee", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    target.add_options(made)
    made.add_argument("--mix", choices=workload.MIXES, default="zipf", help="which task a request is for")
    made.add_argument("--p99", type=float, default=200.0, help="bound on p99, in milliseconds")
    made.add_argument(
        "--goodput", type=float, default=0.95, help="least part of the offered that is answered"
    )
    made.add_argument("--first", type=float, default=20.0, help="requests a second of the first level")
    made.add_argument("--most", type=float, default=20_000.0, help="where to stop at the latest")
    made.add_argument("--factor", type=float, default=1.6, help="from one level to the next")
    made.add_argument(
        "--gap", type=float, default=1.05, help="how close both sides of the knee get, as a ratio"
    )
    made.add_argument("--seconds", type=float, default=8.0, help="of a level, at least")
    made.add_argument("--longest", type=float, default=30.0, help="of a level, at most")
    made.add_argument("--repeats", type=int, default=3, help="of each level")
    made.add_argument("--connections", type=int, default=256)
    made.add_argument("--json", type=Path, default=Path("loadtest/results/knee.json"), help="where to write")
    made.add_argument("--picture", type=Path, default=Path("loadtest/results/knee.png"), help="where to draw")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Find the knee; exit code 1 when not even the lowest rate is carried, or the generator was late."""
    options = parser().parse_args(arguments)
    if options.factor <= 1 or options.gap <= 1 or options.repeats < 1:
        print("--factor and --gap must be more than 1, --repeats 1 or more", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 150)
    rules = Rules(
        p99=options.p99 / 1000,
        goodput=options.goodput,
        first=options.first,
        most=options.most,
        factor=options.factor,
        gap=options.gap,
        repeats=options.repeats,
    )
    try:
        with target.target(options, console) as aim:
            began, facts = time.monotonic(), knee_report.circumstances()
            knee = search(_runner(aim, options), rules, told=lambda level: knee_report.tell(level, console))
            seconds = time.monotonic() - began
    except NotStarted as error:
        console.print(str(error), style="red", highlight=False)
        return 2
    command = target.shown_command("loadtest.knee", sys.argv[1:] if arguments is None else arguments)
    settings = {name: getattr(options, name) for name in ("mix", "seconds", "longest", "connections")}
    plain = knee_report.as_plain(
        knee, rules, aim, command=command, seconds=seconds, settings=settings, facts=facts
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    knee_report.show(knee, rules, console)
    knee_report.draw(plain, options.picture)
    console.print(f"kept in {options.json} and {options.picture}", highlight=False)
    return 0 if knee.rate is not None and knee.limit != "generator" else 1


def _runner(aim: target.Target, options: argparse.Namespace) -> Callable[[float], Trial]:
    choices = workload.task_choices(options.mix, len(aim.task_ids))
    texts = workload.texts(2048)
    written = itertools.cycle(
        http_client.requests(aim.url, aim.task_ids, texts, choices, _REQUESTS, key=aim.key)
    )
    seeds = itertools.count()
    http_client.closed_loop(aim.url, written, connections=8, seconds=1.0)  # nothing is the first of its kind

    def run(rate: float) -> Trial:
        seconds = min(options.longest, max(options.seconds, _ENOUGH / rate))
        time.sleep(0.5)  # what the last one left behind is dropped meanwhile
        return trial(aim.url, written, rate, seconds, connections=options.connections, seed=next(seeds))

    return run


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
