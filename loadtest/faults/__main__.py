"""`python -m loadtest.faults NAME`: run one experiment, print its table, keep it as JSON. Exit code 1: it failed.

Each experiment is a module of this package with `add_options(parser)` and `run(options, console) -> Outcome`.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import time
from pathlib import Path
from types import ModuleType

from rich.console import Console

from loadtest.faults.outcome import keep, show
from loadtest.server_process import leave_on_sigterm

EXPERIMENTS = {
    "crash": "a power cut at every step of a publish, both stores, un-synced writes dropped",
    "redis": "twelve faults of Redis under load: known tasks answered, converged after healing",
    "publishes": "10,000 publishes and rollbacks under load: nothing failed, nothing mixed",
    "histories": "histories of concurrent writers under faults, checked for linearizability",
    "rolling": "a rolling restart of three replicas behind a proxy under load",
    "altered": "altered bytes in the store and in every tier",
    "tiers": "many tasks over few slots: what a working set larger than a tier costs",
    "fleet": "three replicas behind a proxy, one Redis, locust, 100,000 tasks",
}
_MODULES = {"redis": "redis_outages"}  # where a module of the experiment's own name would read like a library


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"loadtest.faults.{_MODULES.get(name, name)}")


def main() -> int:
    """Run the experiment that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.faults", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="name", required=True)
    for name, text in EXPERIMENTS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, default=Path("docs/results/faults"))
        if name in sys.argv[1:2]:  # only the one that runs is imported
            _module(name).add_options(command)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 180)
    began = time.monotonic()
    outcome = _module(options.name).run(options, console)
    path = keep(
        outcome,
        options.out,
        command=f"python -m loadtest.faults {shlex.join(sys.argv[1:])}",
        seconds=time.monotonic() - began,
    )
    show(outcome, console)
    console.print(f"kept in {path}", highlight=False)
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
