"""HTTP throughput against the forward's own throughput in process.

`python -m loadtest.bench_http` starts a server with prefix prompts for many tasks, then alternates: the forward alone
in this process (the server idle), and single-text requests over 64 connections. Prints the medians and their ratio,
and writes bench_http.json. The generator's own share of the CPU is reported beside.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backbone import load_backbone
from loadtest import http_client, workload
from loadtest.bench_forward import machine, run, side
from loadtest.prompts import fill_store
from loadtest.server_process import running_server

LEAST = 0.60


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--kind", choices=("bare", "soft", "prefix"), default="prefix")
    parser.add_argument("--mix", choices=workload.MIXES, default="uniform")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="of load in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path("loadtest/results"))
    parser.add_argument("serve", nargs="*", help="flags for the server, after --")
    options = parser.parse_args()

    console = Console()
    backbone = load_backbone("minilm", dtype=options.dtype)
    texts, ids = workload.texts(1024), workload.task_ids(options.tasks)
    # The same tasks as the requests are for; 1,000 at most, as more make no difference to the forward.
    local = side(backbone, options.kind, 1 if options.mix == "identical" else min(options.tasks, 1000), texts)
    forward: list[float] = []
    rates: list[float] = []
    loads: list[http_client.Load] = []
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"publishing {options.tasks:,} {options.kind} prompts …")
        asyncio.run(fill_store(f"file://{folder}", ids, options.kind, backbone.shape))
        with running_server(
            "--store", f"file://{folder}", "--dtype", options.dtype, *options.serve
        ) as server:
            choices = workload.task_choices(options.mix, options.tasks)
            written = http_client.requests(server.url, ids, texts, choices, 8192)
            run(backbone, local, options.connections)
            http_client.load(server.url, written, connections=options.connections, seconds=options.seconds)
            for nth in range(options.rounds):
                forward.append(len(local.rows) / run(backbone, local, options.connections))
                got = http_client.load(
                    server.url, written, connections=options.connections, seconds=options.seconds
                )
                if got.failed:
                    raise SystemExit(f"{got.failed} requests failed")
                loads.append(got)
                rates.append(got.rate)
                console.print(
                    f"round {nth + 1}: forward {forward[-1]:,.0f} rows/s, HTTP {rates[-1]:,.0f} requests/s"
                )

    cores = os.cpu_count() or 1
    ratio = statistics.median(h / f for h, f in zip(rates, forward, strict=True))
    share = statistics.median(got.cpu_seconds / (got.seconds * cores) for got in loads)
    table = Table(box=None, header_style="bold")
    for column in ("", "median"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(
        f"forward in process, batches of {options.connections}", f"{statistics.median(forward):,.0f} rows/s"
    )
    table.add_row(f"HTTP, {options.connections} connections", f"{statistics.median(rates):,.0f} requests/s")
    table.add_row("HTTP / forward", f"{ratio:.3f} (at least {LEAST})")
    table.add_row("generator's share of all CPU time", f"{share:.3f}")
    table.add_row("HTTP / forward, that share taken out", f"{ratio / (1 - share):.3f}")
    for name, percentile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        median = statistics.median(got.percentile(percentile) for got in loads)
        table.add_row(f"latency {name}", f"{median * 1000:,.1f} ms")
    console.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine(),
        "forward_rows_per_second": forward,
        "http_requests_per_second": rates,
        "ratio": ratio,
        "generator_cpu_share": share,
        "latency_ms": {p: [got.percentile(p / 100) * 1000 for got in loads] for p in (50, 95, 99)},
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    (options.out / "bench_http.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
