"""`make loadtest`: start a server with many tasks, run locust against it, and write its CSV and HTML report.

`python -m loadtest.run --mix zipf --tasks 1000 --users 64 --time 30s`; the exit code is locust's verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from backbone import load_backbone
from loadtest import workload
from loadtest.prompts import fill_store
from loadtest.server_process import leave_on_sigterm, running_server

ROOT = Path(__file__).parent


def main() -> int:
    """Run locust once for each mix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--kind", choices=("bare", "soft", "prefix"), default="prefix")
    parser.add_argument("--mix", choices=(*workload.MIXES, "all"), default="all")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--time", default="15s")
    parser.add_argument("--p99", type=float, default=2000.0, help="milliseconds")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mixes = workload.MIXES if options.mix == "all" else (options.mix,)
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        shape = load_backbone("minilm").shape
        print(f"publishing {options.tasks:,} {options.kind} prompts …", flush=True)
        asyncio.run(fill_store(f"file://{folder}", workload.task_ids(options.tasks), options.kind, shape))
        with running_server("--store", f"file://{folder}") as server:
            for mix in mixes:
                print(
                    f"\n=== {mix} mix, {options.tasks:,} tasks, {options.users} users, {options.time}",
                    flush=True,
                )
                report = options.out / f"locust-{mix}"
                command = [
                    *(sys.executable, "-m", "locust", "-f", str(ROOT / "locustfile.py"), "--headless"),
                    *("-u", str(options.users), "-r", str(options.users), "-t", options.time),
                    *("--host", server.url, "--task-ids", f"load:{options.tasks}", "--mix", mix),
                    *(
                        "--p99",
                        str(options.p99),
                        "--csv",
                        str(report),
                        "--html",
                        f"{report}.html",
                        "--only-summary",
                    ),
                ]
                worst = max(worst, subprocess.run(command, check=False).returncode)
                print(f"report: {report}.html", flush=True)
    return worst


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
