"""Section "latency": how long single requests take at rest and under load, where their time goes, and how long a start
takes.

The knee is the closed-loop throughput at `connections` connections, the median of a few runs just before: a load of
70 % is an open loop with Poisson arrivals at 0.7 of it. (A knee found by a bound on p99 would make the p99 reported at
a part of it a figure about itself.) Idle is one connection with one request at a time. All loads take turns, and so
does the forward of one row in this process. Latency under load counts from the intended send time.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from backbone import Backbone, DevicePrompt, Row, load_backbone
from loadtest import http_client, workload
from loadtest.bench import ours, serving, serving_plots, startup
from loadtest.bench.options import Options
from loadtest.bench.report import Ratio, Section, Table
from loadtest.bench.rounds import Rounds, SideFailed, alternate

ONE_ROW = "one-row forward in process"
IDLE = "idle"
PARTS_OF_KNEE = (0.3, 0.7, 0.95)
_KNEE_RUNS = 3
_TIMINGS = {"queue": "queue", "tokenise": "tokenize", "forward": "forward"}  # ours: the header's


@dataclass
class LoadSide:
    """One load on the server; `rate` None is one request at a time."""

    url: str
    written: Iterator[bytes]
    rate: float | None
    loads: list[http_client.Load] = field(default_factory=list)

    def run(self, seconds: float) -> float:
        """The median request's seconds."""
        if self.rate is None:
            load = http_client.closed_loop(self.url, self.written, seconds=seconds, keep_heads=True)
        else:
            # Each round has arrivals of its own.
            times = http_client.arrivals(self.rate, seconds, seed=len(self.loads)) or [0.0]
            load = http_client.open_loop(
                self.url, self.written, times, connections=serving.OPEN_CONNECTIONS, keep_heads=True
            )
        self.loads.append(serving.clean(load))
        return load.percentile(0.5)

    def p(self, share: float) -> float:
        """The median over rounds of a percentile."""
        return statistics.median(load.percentile(share) for load in self.loads)


def measure(options: Options, console: Console) -> Section:
    """Find the knee, let the loads take turns, then start servers."""
    backbone = load_backbone(options.backbone, dtype=options.dtype)  # as our server loads it
    with serving.filled_store(options, backbone.shape, console) as store:
        with serving.running(options, store) as server:
            serving.wait_until_warm(server)
            written = serving.requests(options, server.url)
            knee = _knee(server.url, written, options)
            console.print(f"knee: {knee:,.0f} requests/s")
            loads = {IDLE: LoadSide(server.url, written, None)}
            loads |= {f"{part:.0%}": LoadSide(server.url, written, part * knee) for part in PARTS_OF_KNEE}
            turns = {name: lambda side=side: side.run(options.seconds) for name, side in loads.items()}
            rounds = alternate(
                {ONE_ROW: _one_row(backbone, options), **turns}, options.rounds, console=console
            )
        if IDLE in rounds.failed:
            raise SideFailed(rounds.failed[IDLE])  # everything here is compared with it
        for side in loads.values():
            del side.loads[0]  # the warm-up
        starts = _starts(options, serving.serve_flags(options, store), console)
    loads = {name: side for name, side in loads.items() if name in rounds.seconds}
    return _section(rounds, loads, starts, knee, options)


def parts(answers: Sequence[tuple[float, bytes]]) -> dict[str, float]:
    """Mean seconds of each part of a request; the rest is what the server does not time: HTTP, JSON, the network, and
    this generator.
    """
    sums = dict.fromkeys([*_TIMINGS, "rest"], 0.0)
    for latency, head in answers:
        timed = server_timing(head)
        for name, called in _TIMINGS.items():
            sums[name] += timed.get(called, 0.0)
        sums["rest"] += latency - sum(timed.get(called, 0.0) for called in _TIMINGS.values())
    return {name: total / max(1, len(answers)) for name, total in sums.items()}


def server_timing(head: bytes) -> dict[str, float]:
    """Seconds by name from an answer's Server-Timing header."""
    found = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() != b"server-timing":
            continue
        for metric in value.decode("latin-1").split(","):
            called, *parameters = (part.strip() for part in metric.split(";"))
            for parameter in parameters:
                if parameter.startswith("dur="):
                    found[called] = float(parameter[4:]) / 1000
    return found


def _knee(url: str, written: Iterator[bytes], options: Options) -> float:
    runs = [
        serving.clean(
            http_client.closed_loop(url, written, connections=options.connections, seconds=options.seconds)
        ).rate
        for _ in range(1 + _KNEE_RUNS)
    ]
    return statistics.median(runs[1:])


def _one_row(backbone: Backbone, options: Options) -> OneRow:
    rows = ours.encode(backbone, options.kind, workload.texts(min(options.rows, 256)))
    return OneRow(backbone, rows, ours.prompts(backbone, options.kind, min(options.tasks, 256)))


@dataclass
class OneRow:
    """The forward of one row at a time."""

    backbone: Backbone
    rows: Sequence[Row]
    prompts: Sequence[DevicePrompt]

    def __call__(self) -> float:
        """The median row's seconds."""
        took = []
        for row, prompt in zip(self.rows, itertools.cycle(self.prompts), strict=False):
            began = time.perf_counter()
            self.backbone.score([row], [prompt])
            took.append(time.perf_counter() - began)
        return statistics.median(took)


def _starts(options: Options, flags: Sequence[str], console: Console) -> list[startup.Start]:
    def request(url: str) -> bytes:
        return next(serving.requests(options, url))

    console.print("starting servers: one unmeasured, so that the disk is warm …")
    count = 1 if options.quick else options.rounds
    return [startup.first_answer(flags, request) for _ in range(1 + count)][1:]


def _section(
    rounds: Rounds,
    loads: dict[str, LoadSide],
    starts: list[startup.Start],
    knee: float,
    options: Options,
) -> Section:
    spent = {
        name: parts([answer for load in side.loads for answer in load.answers])
        for name, side in loads.items()
    }
    columns = ("load", "offered/s", "p50 ms", "p95 ms", "p99 ms", *(f"{part} ms" for part in spent[IDLE]),
               "sent late", "generator's lag p99 ms")  # fmt: skip
    lines = [(ONE_ROW, "–", _ms(rounds.median(ONE_ROW)), *["–"] * (len(columns) - 3))]
    for name, side in loads.items():
        lags = [http_client.percentile(load.lags, 0.99) for load in side.loads]
        lines.append(
            (
                name,
                "–" if side.rate is None else f"{side.rate:,.0f}",
                *(_ms(side.p(share)) for share in (0.5, 0.95, 0.99)),
                *map(_ms, spent[name].values()),
                f"{sum(load.late for load in side.loads):,}",
                "–" if side.rate is None else _ms(statistics.median(lags)),
            )
        )
    table = Table(
        "latency of single-text requests",
        columns,
        lines,
        note=f"{options.tasks:,} tasks ({options.kind}, {options.mix}); loads as parts of the knee, {knee:,.0f} "
        f"requests/s over {options.connections} connections in a closed loop; percentiles are medians of "
        f"{options.rounds} rounds of {options.seconds:g} s, the parts are means",
    )
    median_start = statistics.median(start.seconds for start in starts)
    stages = {
        stage: statistics.median(start.stages.get(stage, 0.0) for start in starts)
        for stage in starts[0].stages
    }
    started = Table(
        "from process start to the first answer",
        ("stage", "seconds"),
        [
            *((stage, f"{seconds:.2f}") for stage, seconds in stages.items()),
            ("in all", f"{median_start:.2f}"),
        ],
        note=f"medians of {len(starts)} starts on a store of {options.tasks:,} tasks, disk warm",
    )
    plot = serving_plots.where_time_goes(
        {IDLE: spent[IDLE], **{f"{name} of the knee": spent[name] for name in loads if name != IDLE}},
        options.out / "latency-parts.png",
    )
    raw = {
        "knee": knee,
        "one_row_seconds": rounds.seconds[ONE_ROW],
        "percentiles": {
            name: {p: [load.percentile(p / 100) for load in side.loads] for p in (50, 95, 99)}
            for name, side in loads.items()
        },
        "parts": spent,
        "starts": [{"seconds": start.seconds, "stages": start.stages} for start in starts],
    }
    return Section("latency", [table, started], _ratios(rounds, loads, median_start), raw, [plot])


def _ratios(rounds: Rounds, loads: dict[str, LoadSide], start: float) -> list[Ratio]:
    found = [
        Ratio("p50 idle / one-row forward", rounds.ratio(ONE_ROW, IDLE), 1.5, 1.2, at_most=True),
        Ratio("process start to first answer, warm disk", start, 8, 5, at_most=True, unit="s"),
    ]
    if "70%" in loads:
        by_round = [
            busy.percentile(0.99) / idle.percentile(0.5)
            for busy, idle in zip(loads["70%"].loads, loads[IDLE].loads, strict=True)
        ]
        found.insert(
            1, Ratio("p99 at 70 % load / p50 idle", statistics.median(by_round), 4, 2.5, at_most=True)
        )
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.2f}"
