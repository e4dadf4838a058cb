"""100,000 soft-prompt tasks in one Redis, several servers over it behind a real proxy, and locust on top.

Owns: the experiment: how long the store takes to fill and a server to start with it, what each task costs in memory,
and what the fleet answers. Each server must have all the tasks and take its share of the load; the proxy sends nothing
twice. Must not know: what the servers do with the tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest import workload
from loadtest.faults.filling import fill
from loadtest.faults.fleet_picture import draw
from loadtest.faults.outcome import Outcome
from loadtest.faults.proxy_process import ProxyProcess
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.replicas import BACKBONES, Replica, replicas, shape_of
from loadtest.ports import free_ports
from loadtest.server_process import ROOT

_NOBODY_WAITS: Final = 600_000.0  # locust's own verdict on latency is not asked for: the figures are kept
_LEAST_SHARE: Final = 0.5  # of an even share: the proxy deals by open requests, and one replica may be slower


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--backbone", choices=BACKBONES, default="minilm")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--time", default="120s", help="of locust's run")
    parser.add_argument("--mix", choices=workload.MIXES, default="zipf")
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="Redis's data stays in this folder; a second run need not fill it",
    )
    parser.add_argument(
        "--csv", type=Path, default=None, help="a folder for locust's CSV files and HTML report"
    )
    parser.add_argument(
        "--picture", type=Path, default=None, help="a PNG of throughput and latency over time"
    )


def run(options: argparse.Namespace, console: Console) -> Outcome:
    """Fill, start, load, look."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisProcess(options.data or scratch / "redis")
        redis.start(patience=300)  # it may load the data of a run before
        stack.enter_context(redis)
        filled = _filled(redis, options, console)
        console.print(f"filled; starting {options.replicas} replicas …", highlight=False)
        began = time.monotonic()
        running = stack.enter_context(
            replicas(options.replicas, redis.url, scratch, backbone=options.backbone)
        )
        together = time.monotonic() - began
        ports = {replica.name: replica.port for replica in running}
        proxy = stack.enter_context(ProxyProcess(scratch / "proxy", free_ports(1)[0], ports, retries=False))
        running[0].stop()
        alone = running[0].start()
        for replica in running:
            proxy.wait_until(replica.name, "UP")
        listing = _timed_listing(running[0])
        before = [_looked_at(replica, proxy) for replica in running]
        console.print(f"started in {together:.1f} s; locust for {options.time} …", highlight=False)
        reports = (options.csv or scratch) / "fleet"
        verdict = _locust(proxy.url, options, reports)
        after = [_looked_at(replica, proxy) for replica in running]
        memory = redis.run("INFO", "memory")["used_memory"]
        total = _total(reports)
        if options.picture is not None:
            title = (
                f"{options.replicas} servers, one Redis, {options.tasks:,} tasks, {options.users} users, "
                f"{options.mix} mix"
            )
            draw(Path(f"{reports}_stats_history.csv"), options.picture, title)
    figures = {
        "tasks": options.tasks,
        "bytes of a prompt file": filled["bytes"],
        f"tasks published a second{', filled earlier' if filled['earlier'] else ''}": round(
            options.tasks / filled["seconds"], 1
        ),
        "Redis, MB": round(memory / 1e6, 1),
        "start of all replicas together, s": round(together, 1),
        "start of one replica beside the others, s": round(alone, 1),
        "GET /v1/models, s": round(listing, 2),
        "requests": total.requests,
        "failed requests": total.failures,
        "locust's exit code": verdict,
        "requests a second": round(total.rate, 1),
        "latency p50_ms": total.p50,
        "latency p95_ms": total.p95,
        "latency p99_ms": total.p99,
        "latency longest_ms": round(total.longest, 1),
    }
    again = {
        name: sum(
            getattr(last, name) - getattr(first, name) for first, last in zip(before, after, strict=True)
        )
        for name in ("retries", "redispatches")
    }
    figures |= {f"{name} by the proxy": count for name, count in again.items()}
    shares = []
    for replica, first, last in zip(running, before, after, strict=True):
        shares.append((last.requests - first.requests) / max(1, total.requests))
        figures[f"{replica.name}: tasks served"] = int(last.tasks)
        figures[f"{replica.name}: share of the requests"] = round(shares[-1], 3)
        figures[f"{replica.name}: memory at start, MB"] = round(first.memory / 1e6)
        figures[f"{replica.name}: memory after the load, MB"] = round(last.memory / 1e6)
        hits, misses = last.hits - first.hits, last.misses - first.misses
        figures[f"{replica.name}: requests that found their prompt loaded"] = round(
            hits / max(1, hits + misses), 4
        )
    return Outcome(
        name="fleet" if options.backbone == "minilm" else f"fleet-{options.backbone}",
        passed=total.requests > 0
        and total.failures == verdict == 0
        and not any(again.values())
        and all(look.tasks == options.tasks for look in (*before, *after))
        and min(shares) >= _LEAST_SHARE / options.replicas,
        wanted="0 failed requests, locust's exit code 0, nothing sent twice by the proxy, all tasks at every server, "
        f"at every server {_LEAST_SHARE:.0%} of an even share of the requests or more",
        seed=options.seed,
        rows=[{"figure": name, "value": value} for name, value in figures.items()],
        facts={
            **{
                name: value
                for name, value in vars(options).items()
                if name in ("replicas", "backbone", "users", "time", "mix")
            },
            "filled_earlier": filled["earlier"],
            "before": [asdict(look) for look in before],
            "after": [asdict(look) for look in after],
        },
    )


def _filled(redis: RedisProcess, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Fill the store, unless a run before has done so; what that took."""
    note = redis.folder / "filled.json"
    wanted = {"tasks": options.tasks, "backbone": options.backbone, "seed": options.seed}
    if note.exists():
        filled: dict[str, Any] = json.loads(note.read_text())
        if not wanted.items() <= filled.items():
            raise ValueError(f"{redis.folder} holds {filled}, not {wanted}: take another folder")
        return {**filled, "earlier": True}
    columns = (TextColumn("publishing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("", total=options.tasks)
        seconds, size = asyncio.run(
            fill(
                redis.url,
                workload.task_ids(options.tasks),
                shape_of(options.backbone),
                lambda: progress.advance(shown),
                seed=options.seed,
            )
        )
    filled = {**wanted, "seconds": seconds, "bytes": size}
    note.write_text(json.dumps(filled))
    return {**filled, "earlier": False}


@dataclass(frozen=True)
class _Look:
    """A replica as it stands."""

    memory: int
    tasks: float
    slots: float
    hits: float
    misses: float
    evictions: float
    requests: int  # and these as the proxy counts them
    retries: int
    redispatches: int


def _looked_at(replica: Replica, proxy: ProxyProcess) -> _Look:
    metrics, counts = replica.metrics(tier="device"), proxy.counts()[replica.name]
    return _Look(
        replica.process.resident_bytes(),
        metrics["promptmux_catalogue_tasks"],
        metrics["promptmux_tier_entries"],
        metrics["promptmux_tier_hits_total"],
        metrics["promptmux_tier_misses_total"],
        metrics["promptmux_tier_evictions_total"],
        **counts,
    )


def _timed_listing(replica: Replica) -> float:
    """Seconds of the list of all tasks that OpenAI's clients ask for."""
    began = time.monotonic()
    with urllib.request.urlopen(f"{replica.url}/v1/models", timeout=120) as answer:
        json.load(answer)
    return time.monotonic() - began


def _locust(url: str, options: argparse.Namespace, reports: Path) -> int:
    """Locust's exit code; 0: no request failed."""
    command = [
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "--headless"),
        *("-u", str(options.users), "-r", str(options.users), "-t", options.time, "--host", url),
        *("--task-ids", f"load:{options.tasks}", "--mix", options.mix, "--p99", str(_NOBODY_WAITS)),
        *("--csv", str(reports), "--html", f"{reports}.html", "--only-summary"),
    ]
    reports.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{reports}_stats.csv").unlink(missing_ok=True)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not Path(f"{reports}_stats.csv").exists():
        raise RuntimeError(f"locust did not run:\n{done.stderr[-2000:]}")
    return done.returncode


@dataclass(frozen=True)
class _Total:
    """Locust's last line. Latencies in milliseconds."""

    requests: int
    failures: int
    rate: float
    p50: float
    p95: float
    p99: float
    longest: float


def _total(reports: Path) -> _Total:
    with Path(f"{reports}_stats.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")
    return _Total(
        int(row["Request Count"]),
        int(row["Failure Count"]),
        float(row["Requests/s"]),
        _milliseconds(row["50%"]),
        _milliseconds(row["95%"]),
        _milliseconds(row["99%"]),
        float(row["Max Response Time"]),
    )


def _milliseconds(text: str) -> float:
    return math.nan if text == "N/A" else float(text)  # nothing was answered
