"""Section "http": single-text requests end to end, ours for many tasks against infinity-emb with one fixed head.

A closed loop (every connection sends its next text as soon as the last is answered) gives throughput. All servers stand
ready and take turns; only one gets load at a time, and what the others use meanwhile is reported. Our forward alone, in
this process, takes its turns too. Then an open loop raises the rate step by step, each server up to its own limit.
The generator is the same for all sides and its own CPU time stands beside each figure.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich.console import Console

from backbone import load_backbone
from loadtest import http_client, workload
from loadtest.bench import infinity, ours, serving, serving_plots
from loadtest.bench.options import Options
from loadtest.bench.peer_process import REQUIREMENTS
from loadtest.bench.report import Ratio, Section, Table
from loadtest.bench.rounds import Rounds, SideFailed, alternate
from loadtest.server_process import Process

FORWARD = "forward in process"
SWEEP = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05)  # of a server's own closed-loop throughput
QUICK_SWEEP = (0.4, 0.8)
_PATIENCE = 5.0


@dataclass(frozen=True)
class OpenPoint:
    """One stretch of open-loop load: requests a second that were to be sent, and what came of them."""

    rate: float
    load: http_client.Load


@dataclass
class HttpSide:
    """A server and what it is asked; `others` are the processes that should be idle meanwhile."""

    name: str
    url: str
    process: Process
    written: Iterator[bytes]
    loads: list[http_client.Load] = field(default_factory=list)
    idle_shares: list[float] = field(default_factory=list)  # of all cores, used by the other servers
    others: list[Process] = field(default_factory=list)

    def run(self, options: Options) -> float:
        """Seconds for one request in a closed loop."""
        before = sum(other.cpu_seconds() for other in self.others)
        load = serving.clean(
            http_client.closed_loop(
                self.url, self.written, connections=options.connections, seconds=options.seconds
            )
        )
        used = sum(other.cpu_seconds() for other in self.others) - before
        self.loads.append(load)
        self.idle_shares.append(used / (load.seconds * (os.cpu_count() or 1)))
        return 1 / load.rate


def measure(options: Options, console: Console) -> Section:
    """Start every server, let them take turns, then raise the rate."""
    backbone = load_backbone(options.backbone, dtype=options.dtype)  # as our server loads it
    rows = ours.encode(backbone, options.kind, workload.texts(options.rows))
    # Prompts walk round-robin here and by the mix over HTTP; the forward does not care.
    count = 1 if options.mix == "identical" else options.tasks
    local = ours.Side(backbone, rows, ours.prompts(backbone, options.kind, count), options.batch)
    own = f"ours, {options.tasks:,} tasks ({options.kind}, {options.mix})"
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(serving.filled_store(options, backbone.shape, console))
        server = stack.enter_context(serving.running(options, store))
        serving.wait_until_warm(server)
        sides = {own: HttpSide(own, server.url, server.process, serving.requests(options, server.url))}
        absent = {}
        if "infinity" in options.peers:
            absent = _start_infinity(sides, stack, options, console)
        for side in sides.values():
            side.others = [other.process for other in sides.values() if other is not side]
        turns = {name: lambda side=side: side.run(options) for name, side in sides.items()}
        rounds = alternate({FORWARD: local.run, **turns}, options.rounds, console=console)
        for side in sides.values():
            del side.loads[0], side.idle_shares[0]  # the warm-up
        done = {name: side for name, side in sides.items() if name in rounds.seconds}
        names = dict.fromkeys(name for name in (own, best_form(rounds), infinity.AS_IT_COMES) if name in done)
        points = _sweep({name: done[name] for name in names}, rounds, options, console)
    return _section(rounds, done, absent | rounds.failed, points, own, options)


def _start_infinity(
    sides: dict[str, HttpSide], stack: contextlib.ExitStack, options: Options, console: Console
) -> dict[str, str]:
    """Add infinity in every form that starts; the others with the reason why they do not."""
    try:
        folders = stack.enter_context(infinity.checkpoints(ours.folder(options.backbone), console))
    except SideFailed as error:
        return {"infinity": str(error)}
    absent = {}
    texts = workload.texts(min(options.rows, serving.REQUESTS))
    for form, folder in folders.items():
        console.print(f"starting {form} …")
        try:
            server = stack.enter_context(infinity.running(form, folder, console, warm_up=not options.quick))
            apart = infinity.disagreement(server, folder, texts[:8])
        except SideFailed as error:
            absent[form] = str(error)
            continue
        if apart > infinity.MOST_APART:
            absent[form] = f"its scores are {apart:.3f} from the stock model's"
            continue
        console.print(f"  agrees with the stock model to {apart:.4f}", style="dim")
        written = http_client.infinity_requests(server.url, infinity.SERVED_AS, texts, serving.REQUESTS)
        sides[form] = HttpSide(form, server.url, server.process, itertools.cycle(written))
    return absent


def best_form(rounds: Rounds) -> str | None:
    """The form of infinity with the highest throughput; None if there is none."""
    forms = [name for name in rounds.seconds if name in infinity.FORMS]
    return min(forms, key=rounds.median) if forms else None


def _sweep(
    sides: Mapping[str, HttpSide], rounds: Rounds, options: Options, console: Console
) -> dict[str, list[OpenPoint]]:
    """Open-loop load on each server, at parts of its own closed-loop throughput."""
    points: dict[str, list[OpenPoint]] = {name: [] for name in sides}
    for nth, part in enumerate(QUICK_SWEEP if options.quick else SWEEP):
        for name, side in sides.items():
            rate = part / rounds.median(name)
            times = http_client.arrivals(rate, options.seconds, seed=nth)
            if not times:
                continue
            console.print(f"open loop, {name}: {rate:,.0f} requests/s", style="dim")
            load = http_client.open_loop(
                side.url, side.written, times, connections=serving.OPEN_CONNECTIONS, patience=_PATIENCE
            )
            points[name].append(OpenPoint(rate, load))
    return points


def _section(
    rounds: Rounds,
    sides: Mapping[str, HttpSide],
    absent: Mapping[str, str],
    points: Mapping[str, list[OpenPoint]],
    own: str,
    options: Options,
) -> Section:
    lines = [(FORWARD, f"{1 / rounds.median(FORWARD):,.0f}", *["–"] * 5, f"{rounds.spread(FORWARD):.0%}")]
    for name, side in sides.items():
        lines.append(
            (
                name,
                f"{1 / rounds.median(name):,.0f}",
                *(f"{_median_ms(side.loads, share):,.1f}" for share in (0.5, 0.95, 0.99)),
                f"{statistics.median(_shares(side)):.1%}",
                f"{statistics.median(side.idle_shares):.1%}",
                f"{rounds.spread(name):.0%}",
            )
        )
    lines += [(name, *["–"] * 7) for name in absent]
    closed = Table(
        f"closed loop: {options.connections} connections, one text a request",
        ("side", "a second", "p50 ms", "p95 ms", "p99 ms", "generator's CPU", "idle servers' CPU", "spread"),
        lines,
        note="; ".join(
            [
                f"medians of {options.rounds} rounds of {options.seconds:g} s; CPU as parts of all cores",
                f"the forward in batches of {options.batch}",
                *(f"{name} is missing: {why}" for name, why in absent.items()),
                *([f"infinity's environment: {_pins()}"] if len(sides) > 1 else []),
            ]
        ),
    )
    opened = Table(
        "open loop: Poisson arrivals, latency from the intended time",
        ("side", "offered/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "sent late", "unanswered",
         "generator's CPU", "generator's lag p99 ms"),
        [(name, *_open_cells(point)) for name, found in points.items() for point in found],
        note=f"{options.seconds:g} s each over {serving.OPEN_CONNECTIONS} connections; sent late: every connection "
        f"was busy; unanswered after {_PATIENCE:g} s more",
    )  # fmt: skip
    curves = {
        name: [(p.load.rate, p.load.percentile(0.5), p.load.percentile(0.99)) for p in found]
        for name, found in points.items()
    }
    plot = serving_plots.throughput_against_p99(curves, options.out / "http-open-loop.png")
    raw = {
        "seconds": rounds.seconds,  # for one row or request
        "generator_cpu_share": {name: _shares(side) for name, side in sides.items()},
        "idle_servers_cpu_share": {name: side.idle_shares for name, side in sides.items()},
        "latency_seconds": {
            name: {p: [load.percentile(p / 100) for load in side.loads] for p in (50, 95, 99)}
            for name, side in sides.items()
        },
        "open_loop": {name: [_open_raw(point) for point in found] for name, found in points.items()},
        "absent": dict(absent),
    }
    return Section("http", [closed, opened], _ratios(rounds, sides, own), raw, [plot])


def _ratios(rounds: Rounds, sides: Mapping[str, HttpSide], own: str) -> list[Ratio]:
    if own not in rounds.seconds:
        return []
    best, comes = best_form(rounds), infinity.AS_IT_COMES
    kept = [1 - share for share in _shares(sides[own])]
    of_forward = [ratio / part for ratio, part in zip(rounds.ratios(own, FORWARD), kept, strict=True)]
    return [
        Ratio(
            "ours over HTTP / infinity at its best",
            rounds.ratio(own, best) if best else None,
            2.5,
            4,
            note=best or "infinity was not measured",
        ),
        Ratio(
            "ours over HTTP / infinity as it comes (float32)",
            rounds.ratio(own, comes) if comes in rounds.seconds else None,
            4,
            6,
            note="" if comes in rounds.seconds else "infinity was not measured",
        ),
        Ratio(
            "HTTP, generator's CPU taken out / own forward",
            statistics.median(of_forward),
            0.8,
            0.9,
            note=f"{rounds.ratio(own, FORWARD):.3f} with the generator's CPU left in",
        ),
    ]


def _shares(side: HttpSide) -> list[float]:
    """The generator's part of all processor time, round by round."""
    return [load.cpu_seconds / (load.seconds * (os.cpu_count() or 1)) for load in side.loads]


def _median_ms(loads: list[http_client.Load], share: float) -> float:
    return statistics.median(load.percentile(share) for load in loads) * 1000


def _open_cells(point: OpenPoint) -> tuple[str, ...]:
    load = point.load
    return (
        f"{point.rate:,.0f}",
        f"{load.rate:,.0f}",
        *(f"{load.percentile(share) * 1000:,.1f}" for share in (0.5, 0.95, 0.99)),
        f"{load.late:,}",
        f"{load.unanswered + load.failed:,}",
        f"{load.cpu_seconds / (load.seconds * (os.cpu_count() or 1)):.1%}",
        f"{http_client.percentile(load.lags, 0.99) * 1000:.1f}",
    )


def _open_raw(point: OpenPoint) -> dict[str, float | None]:
    load = point.load
    shares = {p: load.percentile(p / 100) for p in (50, 95, 99)}
    return {
        "offered_per_second": point.rate,
        "answered_per_second": load.rate,
        # JSON knows no infinity.
        **{f"p{p}_seconds": value if math.isfinite(value) else None for p, value in shares.items()},
        "late": load.late,
        "unanswered": load.unanswered,
        "failed": load.failed,
        "cpu_seconds": load.cpu_seconds,
        "seconds": load.seconds,
        "lag_p99_seconds": http_client.percentile(load.lags, 0.99),
    }


def _pins() -> str:
    wanted = ("infinity_emb", "torch", "transformers", "optimum", "onnxruntime")
    lines = (REQUIREMENTS / "infinity.txt").read_text(encoding="utf-8").splitlines()
    return ", ".join(line.replace("==", " ") for line in lines if line.partition("==")[0] in wanted)
