"""Many tasks over few slots: what a working set larger than a tier costs.

One store of soft-prompt tasks, asked for by Zipf's law, and servers that differ in how many prompts their device cache
holds: all of them, or ever fewer. Host memory holds a part of the working set, the disk all of it. The servers stand
side by side and take turns; each sees the same requests.

There is no cliff where (1) 256 slots keep at least 0.8 of the rate with all prompts on the device, and (2) the server's
processor time for a request grows with the share of misses and with nothing else: every size lies within 5 % of one
straight line. Processor time, because on two cores that others use, too, the clock shows mostly the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from backbone import Backbone, load_backbone
from loadtest import http_client, workload
from loadtest.bench import serving
from loadtest.bench.plots import pyplot, save
from loadtest.bench.rounds import Rounds, alternate
from loadtest.faults.outcome import Outcome
from loadtest.prompts import fill_store, make_prompt
from loadtest.server_process import Running, running_server
from prompt_store import decode_prompt, encode_prompt
from server.prompt_cache import SLOT_OVERHEAD

_TIERS = ("device", "host", "disk", "store")
_KEPT_AT = 256  # slots
_KEPT = 0.8
_STRAIGHT = 0.05
_WHOLE_MISSES = 0.01  # of the side with room for all
_WRITTEN = 65_536  # requests written beforehand, then again from the start
_FILE_OVERHEAD = 300  # what host memory counts beside a file's bytes
_PATIENCE = 900.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the experiment can be asked for."""
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument(
        "--slots", type=int, nargs="+", default=[1024, 256, 64], help="besides as many as tasks"
    )
    parser.add_argument("--exponent", type=float, default=1.1, help="of Zipf's law")
    parser.add_argument("--host-share", type=float, default=0.25, help="part of all files in host memory")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--plot", type=Path, default=Path("docs/images/tiers.png"))


@dataclass
class Side:
    """One server: how many prompts its device holds, and what it was found to do."""

    slots: int
    server: Running
    written: Iterator[bytes]
    loads: list[http_client.Load] = field(default_factory=list)
    hits: list[Mapping[str, float]] = field(default_factory=list)  # of each round, by tier
    misses: list[float] = field(default_factory=list)  # of the device, as a share
    cpu: list[float] = field(default_factory=list)  # the server's processor seconds for one request

    def run(self, options: argparse.Namespace) -> float:
        """Seconds for one request in a closed loop."""
        before, cpu = _counters(self.server), self.server.process.cpu_seconds()
        load = http_client.closed_loop(
            self.server.url, self.written, connections=options.connections, seconds=options.seconds
        )
        if load.failed or load.unanswered:
            raise RuntimeError(f"{load.failed} of {load.offered} requests failed")
        found = {name: value - before[name] for name, value in _counters(self.server).items()}
        self.loads.append(load)
        self.cpu.append((self.server.process.cpu_seconds() - cpu) / load.answered)
        self.hits.append({tier: found[f"hits {tier}"] for tier in _TIERS})
        self.misses.append(found["misses device"] / (found["hits device"] + found["misses device"]))
        return load.seconds / load.answered

    def share(self, tier: str) -> float:
        """Requests that `tier` answered, as a share of all; a load that several waited for is counted for each."""
        hits = {name: sum(one[name] for one in self.hits[1:]) for name in _TIERS}
        missed, behind = self.miss_share, sum(hits[name] for name in _TIERS[1:]) or 1.0
        return 1 - missed if tier == "device" else missed * hits[tier] / behind

    @property
    def miss_share(self) -> float:
        """Requests whose prompt was not on the device, as a share of all."""
        return statistics.median(self.misses[1:])

    @property
    def processor(self) -> float:
        """The server's processor seconds for one request; the median of the rounds."""
        return statistics.median(self.cpu[1:])

    def percentile(self, share: float) -> float:
        """Milliseconds; the median of the rounds."""
        return statistics.median(load.percentile(share) for load in self.loads[1:]) * 1e3


def run(options: argparse.Namespace, console: Console) -> Outcome:
    """Publish, serve, take turns, compare."""
    backbone = load_backbone("minilm")
    ids = workload.task_ids(options.tasks)
    file_bytes, tensor_bytes = _sizes(backbone)
    slot_bytes = tensor_bytes + SLOT_OVERHEAD
    sizes = [options.tasks, *sorted({n for n in options.slots if n < options.tasks}, reverse=True)]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        store = f"file://{folder / 'store'}"
        console.print(f"publishing {options.tasks:,} prompts …")
        asyncio.run(fill_store(store, ids, "soft", backbone.shape))
        host_bytes = int(options.host_share * options.tasks * (file_bytes + _FILE_OVERHEAD))
        sides: dict[str, Side] = {}
        for slots in sizes:
            console.print(f"starting a server with {slots:,} slots …")
            server = stack.enter_context(
                running_server(
                    *("--store", store, "--cache-dir", str(folder / f"cache-{slots}")),
                    # What is loaded ahead stops short of the capacity, so that all on the device takes a little more.
                    *("--prompt-cache-bytes", str(slots * slot_bytes * (2 if slots == options.tasks else 1))),
                    *("--host-cache-bytes", str(host_bytes)),
                    patience=_PATIENCE,
                )
            )
            _wait_until_warm(server)
            # Each task once: the server loads but some ahead, and the side with room for all is to have all.
            each = http_client.requests(server.url, ids, workload.texts(256), iter(range(len(ids))), len(ids))
            serving.clean(http_client.closed_loop(server.url, each, connections=options.connections))
            sides[f"{slots:,}"] = Side(slots, server, _requests(options, server.url, ids))
        rounds = alternate(
            {name: lambda side=side: side.run(options) for name, side in sides.items()},  # type: ignore[misc]
            options.rounds,
            console=console,
            title="tiers",
        )
        standing = {name: _ready(side.server)["tiers"] for name, side in sides.items()}
    _demand_sizes(sides, standing)
    return _judged(options, sides, rounds, {"standing": standing, "file_bytes": file_bytes})


def _demand_sizes(sides: Mapping[str, Side], standing: Mapping[str, Any]) -> None:
    """RuntimeError where a side held another number of prompts than its name says: nothing was measured then."""
    for name, side in sides.items():
        held = standing[name]["device"]["entries"]
        if not 0.95 * side.slots <= held <= side.slots:
            raise RuntimeError(f"the server with {name} slots holds {held:,} prompts on the device")
    whole = next(iter(sides.values()))
    if whole.miss_share > _WHOLE_MISSES:
        raise RuntimeError(f"the server with room for all missed {whole.miss_share:.1%} of its requests")


def _judged(
    options: argparse.Namespace, sides: Mapping[str, Side], rounds: Rounds, facts: dict[str, Any]
) -> Outcome:
    whole = next(iter(sides))
    kept = {name: rounds.ratio(name, whole) for name in sides}
    misses = np.array([side.miss_share for side in sides.values()])
    used = np.array([side.processor for side in sides.values()])
    cost, free = np.polyfit(misses, used, 1)
    off = used / (free + cost * misses) - 1
    rows = [
        {
            "slots": side.slots,
            "requests/s": round(1 / rounds.median(name), 1),
            "of all-fits": round(kept[name], 3),
            "p50 ms": round(side.percentile(0.5), 1),
            "p99 ms": round(side.percentile(0.99), 1),
            "cpu ms": round(side.processor * 1e3, 3),
            **{tier: round(side.share(tier), 4) for tier in _TIERS},
            "off the line": round(float(off[at]), 3),
        }
        for at, (name, side) in enumerate(sides.items())
    ]
    judged = kept.get(f"{_KEPT_AT:,}", min(kept.values()))
    passed = judged >= _KEPT and float(np.max(np.abs(off))) <= _STRAIGHT
    _plot(sides, rounds, options, free, cost)
    return Outcome(
        name="tiers",
        passed=passed,
        wanted=f"{_KEPT_AT} slots keep {_KEPT} of the rate with all on the device, and every size lies within "
        f"{_STRAIGHT:.0%} of one straight line of processor time against misses",
        seed=options.seed,
        rows=rows,
        facts={
            **facts,
            "backbone": "minilm",
            "processor_microseconds_per_miss": round(float(cost) * 1e6, 1),
            "processor_microseconds_per_hit": round(float(free) * 1e6, 1),
            "processor_microseconds": {
                name: [round(s * 1e6, 1) for s in side.cpu[1:]] for name, side in sides.items()
            },
            "rounds": {name: [round(s * 1e6, 1) for s in taken] for name, taken in rounds.seconds.items()},
            "ratios": {name: [round(r, 3) for r in rounds.ratios(name, whole)] for name in sides},
            "options": {
                "tasks": options.tasks, "exponent": options.exponent, "host_share": options.host_share,
                "connections": options.connections, "seconds": options.seconds,
            },
        },
    )  # fmt: skip


def _sizes(backbone: Backbone) -> tuple[int, int]:
    """Bytes of one prompt as a file and on the device: all of the experiment's prompts are alike."""
    data = encode_prompt(*make_prompt(workload.task_ids(1)[0], "soft", backbone.shape, seed=0))
    return len(data), backbone.load_prompt(decode_prompt(data)).nbytes


def _requests(options: argparse.Namespace, url: str, ids: list[str]) -> Iterator[bytes]:
    choices = workload.task_choices("zipf", len(ids), seed=options.seed, exponent=options.exponent)
    texts = workload.texts(4096, seed=options.seed)
    return itertools.cycle(http_client.requests(url, ids, texts, choices, _WRITTEN))


def _wait_until_warm(server: Running) -> None:
    """Wait until device and disk stand still: what the server does in the background after a start is done."""
    seen: object = None
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        time.sleep(1.0)
        tiers = _ready(server)["tiers"]
        now = (tiers["device"]["entries"], tiers["disk"]["entries"])
        if now == seen:
            return
        seen = now
    raise RuntimeError(f"the server was still loading prompts after {_PATIENCE:g} s")


def _ready(server: Running) -> Any:
    with urllib.request.urlopen(f"{server.url}/readyz", timeout=30) as answer:
        return json.load(answer)


def _counters(server: Running) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.admin_url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("promptmux_tier_"))
    return {
        f"{what} {tier}": float(found.get(f'promptmux_tier_{what}_total{{tier="{tier}"}}', 0.0))
        for what in ("hits", "misses")
        for tier in _TIERS
    }


def _plot(
    sides: Mapping[str, Side], rounds: Rounds, options: argparse.Namespace, free: float, cost: float
) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
    slots = [side.slots for side in sides.values()]
    left.plot(slots, [1 / rounds.median(name) for name in sides], marker="o", color="#2f6fb2", linewidth=2)
    left.set_xscale("log")
    left.set_xticks(slots, [f"{count:,}" for count in slots])
    left.minorticks_off()
    left.set_ylim(0, 1.15 / min(rounds.median(name) for name in sides))
    left.set_xlabel("prompts that the device holds", fontsize=9)
    left.set_ylabel("requests per second", fontsize=9)
    title = f"{options.tasks:,} tasks, Zipf {options.exponent:g}, {options.connections} connections"
    left.set_title(title, loc="left", fontsize=10)
    misses = [side.miss_share for side in sides.values()]
    for side in sides.values():
        right.plot(
            [side.miss_share] * len(side.cpu[1:]), [s * 1e3 for s in side.cpu[1:]], ".", color="#b9bec6"
        )
    right.plot(misses, [side.processor * 1e3 for side in sides.values()], "o", color="#2f6fb2")
    ends = np.array([0.0, max(misses)])
    right.plot(ends, (free + cost * ends) * 1e3, color="#d08a2e", linewidth=1)
    right.set_ylim(bottom=0)
    right.set_xlabel("share of requests that miss the device", fontsize=9)
    right.set_ylabel("processor milliseconds per request", fontsize=9)
    right.set_title(f"a miss costs {cost * 1e3:.2f} ms", loc="left", fontsize=10)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eceef1")
        axes.set_axisbelow(True)
    save(figure, options.plot)
