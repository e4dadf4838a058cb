"""`make loadtest`: send a load of some shape to a server, with locust and then in an open loop, and judge it.

    python -m loadtest.run                                   # steady load, each mix of tasks
    python -m loadtest.run --shape spike --users 8
    python -m loadtest.run --shape greedy --workers 2        # locust as a master and two workers
    python -m loadtest.run --shape soak --host http://10.0.0.5:8000 --task-ids sentiment,topic --metrics URL

Without --host a server of its own runs meanwhile. Writes, for each run, into --out: locust's CSV files and HTML report,
and our own summary (.md, .json and a picture). Exit code 1: some bound was not kept; 2: it could not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from loadtest import open_shapes, shape_report, shapes, workload
from loadtest.ports import free_port
from loadtest.record import Record
from loadtest.server_process import NotStarted, leave_on_sigterm, process
from loadtest.target import Target, shown_command, target
from loadtest.target import add_options as add_target_options

ROOT = Path(__file__).parent
_STEADY = "15"  # seconds, where --steady-seconds does not say


def parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The whole command line, and the part of it that locust is not given."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_target_options(own)
    how = own.add_argument_group("the load")
    how.add_argument(
        "--mix", choices=(*workload.MIXES, "all"), default="",
        help="which task a request is for; all: one run for each (default: all for steady, else zipf)",
    )  # fmt: skip
    how.add_argument("--users", type=int, default=0, help="(default: 64 for steady, else 8)")
    how.add_argument("--workers", type=int, default=0, help="locust as a master and so many workers")
    how.add_argument("--no-open-loop", action="store_true", help="locust alone")
    how.add_argument("--out", type=Path, default=ROOT / "results")
    whole = argparse.ArgumentParser(
        prog="python -m loadtest.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[own],
        allow_abbrev=False,
    )
    shapes.add_options(whole.add_argument_group("its shape and its bounds"))
    return whole, own


def main(arguments: list[str] | None = None) -> int:
    """Run locust, and the open loop, once for each mix."""
    given = sys.argv[1:] if arguments is None else arguments
    whole, own = parsers()
    options = whole.parse_args(given)
    options.users = options.users or (64 if options.shape == "steady" else shapes.USERS)
    mix = options.mix or ("all" if options.shape == "steady" else "zipf")
    command = shown_command("loadtest.run", given)
    console = Console(width=None if sys.stdout.isatty() else 150)
    worst = 0
    try:
        with target(options, console) as aim:
            if options.shape == "greedy" and len(aim.task_ids) < 2:
                whole.error("--shape greedy needs two tasks or more")
            if options.shape == "soak" and not (aim.memory_of or options.no_memory):
                whole.error("--shape soak with --host needs --metrics, or --no-memory")
            passed_on = own.parse_known_args(given)[1]
            for one in workload.MIXES if mix == "all" else (mix,):
                options.mix = one
                worst = max(worst, _one(options, passed_on, aim, command, console))
    except NotStarted as error:
        console.print(str(error), style="red", highlight=False)
        return 2
    return worst


def _one(
    options: argparse.Namespace, passed_on: list[str], aim: Target, command: str, console: Console
) -> int:
    name = f"load-{options.shape}-{options.mix}"
    prefix = options.out.resolve() / name
    prefix.parent.mkdir(parents=True, exist_ok=True)
    raw = Path(f"{prefix}-locust.json")
    raw.unlink(missing_ok=True)
    console.print(
        f"\n=== {options.shape} load, {options.mix} mix, {options.users} users, {aim.told}", highlight=False
    )
    exit_code = _locust(options, passed_on, aim, prefix, raw)
    if not raw.exists():
        console.print(f"locust wrote no record (exit code {exit_code})", style="red")
        return 2
    records = [Record.from_plain(json.loads(raw.read_text(encoding="utf-8")))]
    raw.unlink()  # all of it is in the summary
    bounds = shapes.bounds(options)

    def report(unsent: str) -> shape_report.Result:
        made = shape_report.result(name, records, bounds, exit_code, unsent=unsent)
        shape_report.write(made, prefix, command=command, told=aim.told, facts=aim.facts, bounds=bounds)
        return made

    if options.no_open_loop or exit_code > 1:
        made = report("")
    elif asked := open_shapes.segments(options, records[0]):
        report("not yet sent, or broken off")  # what locust measured is kept, whatever happens from here on
        seconds = sum(segment.seconds for segment in asked)
        console.print(f"open loop, {seconds:.0f} s …", highlight=False)
        try:
            records.append(open_shapes.send(aim, asked, options))
            made = report("")
        except OSError as error:
            made = report(f"could not be sent: {error}")
    else:
        made = report("not sent: the closed loop answered too little to take parts of")
    print(shape_report.told(made))
    print(f"report: {prefix}.md, locust's: {prefix}.html", flush=True)
    return 0 if made.passed else 1


def _locust(options: argparse.Namespace, passed_on: list[str], aim: Target, prefix: Path, raw: Path) -> int:
    """Run locust, as one process or as a master and its workers; its exit code."""
    locust = [sys.executable, "-m", "locust", "-f", str(ROOT / "locustfile.py")]
    load = ["--host", aim.url, "--task-ids", aim.tasks, "--mix", options.mix, *passed_on]
    if options.shape == "steady" and not options.steady_seconds:
        load += ["--steady-seconds", _STEADY]
    main_flags = [
        *(
            "--headless",
            "--only-summary",
            "--loglevel",
            "WARNING",
            "-u",
            str(options.users),
            "-r",
            str(options.users),
        ),
        *("--csv", str(prefix), "--html", f"{prefix}.html", "--record", str(raw)),
    ]
    if aim.memory_of:
        main_flags += ["--memory-of", aim.memory_of]
    # Not on a command line, which everybody sees.
    keys = {"PROMPTMUX_KEY": aim.key, "PROMPTMUX_METRICS_KEY": aim.metrics_key}
    variables = {name: key for name, key in keys.items() if key}
    with contextlib.ExitStack() as stack:
        if options.workers:
            port = str(free_port())
            main_flags += ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
            main_flags += ["--expect-workers", str(options.workers), "--expect-workers-max-wait", "60"]
            joining = ["--worker", "--master-host", "127.0.0.1", "--master-port", port]
            for _ in range(options.workers):
                stack.enter_context(process([*locust, *load, *joining], variables))
        done = subprocess.run([*locust, *load, *main_flags], check=False, env={**os.environ, **variables})
    return done.returncode


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
