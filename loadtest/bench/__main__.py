"""`python -m loadtest.bench` (or `make bench`, or `promptmux bench`): measure, print, write.

Owns the command line and the order of sections. A section is a module `loadtest.bench.<name>` with
`measure(options, console) -> Section`; one that fails is reported in its place, and the others go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from loadtest.bench import report
from loadtest.bench.options import PEERS, SECTIONS, Options
from loadtest.server_process import leave_on_sigterm
from loadtest.workload import MIXES


def parse(arguments: Sequence[str]) -> Options:
    """Options from a command line."""
    default = Options()
    parser = argparse.ArgumentParser(
        prog="promptmux bench",
        description="Forward, HTTP, latency and memory against the machine's own rate and against the peers.",
        epilog="Peers are installed into loadtest/peers/ on first use: minutes and some gigabytes.",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=default.rounds,
        help="measured rounds, in which sides alternate (%(default)s)",
    )
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections, separated by commas (%(default)s)"
    )
    parser.add_argument(
        "--rows", type=int, help=f"texts of one side in one round ({default.rows}; 64 if quick)"
    )
    parser.add_argument("--batch", type=int, default=default.batch, help="rows of one forward (%(default)s)")
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {','.join(PEERS)}")
    parser.add_argument("--modes", default=",".join(default.modes), help="how our forward runs (%(default)s)")
    parser.add_argument(
        "--backbone", default=default.backbone, metavar="NAME", help="a name or folder (%(default)s)"
    )
    parser.add_argument("--dtype", default=default.dtype, help="of our forward (%(default)s)")
    http = parser.add_argument_group("http, latency and memory")
    http.add_argument(
        "--kind", choices=("bare", "soft", "prefix"), default=default.kind, help="of prompts (%(default)s)"
    )
    http.add_argument(
        "--mix", choices=MIXES, default=default.mix, help="which task a request is for (%(default)s)"
    )
    http.add_argument("--tasks", type=int, help=f"tasks that we serve ({default.tasks}; 32 if quick)")
    http.add_argument(
        "--connections", type=int, default=default.connections, help="of the closed loop (%(default)s)"
    )
    http.add_argument(
        "--seconds", type=float, help=f"of load in one round ({default.seconds:g}; 0.5 if quick)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default.out,
        help="a folder for JSON, Markdown and plots (loadtest/results)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="seconds, not minutes: shows that it runs, measures nothing"
    )
    given = parser.parse_args(arguments)
    for option in ("rounds", "rows", "batch", "tasks", "connections"):
        if (number := getattr(given, option)) is not None and number < 1:
            parser.error(f"--{option} must be at least 1")
    if given.seconds is not None and given.seconds <= 0:
        parser.error("--seconds must be more than 0")
    peers = PEERS if given.peers == "all" else () if given.peers == "none" else _listed(given.peers)
    only = _listed(given.only)
    for option, names, known in (("--only", only, SECTIONS), ("--peers", peers, PEERS)):
        if unknown := sorted(set(names) - set(known)):
            parser.error(f"{option}: {', '.join(unknown)} unknown; there are {', '.join(known)}")
    return Options(
        rounds=given.rounds,
        rows=given.rows or (64 if given.quick else default.rows),
        batch=given.batch,
        only=tuple(name for name in SECTIONS if name in only),
        peers=tuple(name for name in PEERS if name in peers),
        modes=_listed(given.modes),
        backbone=given.backbone,
        dtype=given.dtype,
        kind=given.kind,
        mix=given.mix,
        tasks=given.tasks or (32 if given.quick else default.tasks),
        connections=given.connections,
        seconds=given.seconds or (0.5 if given.quick else default.seconds),
        out=given.out,
        quick=given.quick,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every section that was asked for; 1 if any of them could not be measured."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    # Imported late: --help and a misspelt option need no torch.
    from loadtest.bench.machine import machine

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    described = machine()
    console.print(Text(", ".join(f"{key} {value}" for key, value in described.items() if key != "versions")))
    if options.quick:
        console.print("[yellow]quick: this shows that everything runs; the figures mean nothing")
    sections = []
    # A run of some sections leaves the files of a full run alone.
    name = "bench" if options.only == SECTIONS and not options.quick else f"bench-{'-'.join(options.only)}"
    for nth in options.only:
        sections.append(_measured(nth, options, console))
        report.show(sections[-1], console)
        # Written after each section: what was measured in an hour is not lost with the next one.
        written = report.write(options.out, name, sections, described, dataclasses.asdict(options))
    console.print(f"written: {', '.join(str(file) for file in written)}")
    return 1 if any(section.error for section in sections) else 0


def _measured(name: str, options: Options, console: Console) -> report.Section:
    try:
        section: report.Section = importlib.import_module(f"loadtest.bench.{name}").measure(options, console)
    except Exception as error:
        traceback.print_exc()
        return report.Section(name, error=f"{type(error).__name__}: {error}")
    return section


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
