"""What a task takes and what a request costs on this machine, and what so many of both would need.

    python -m loadtest.sizing measure                              (some minutes; --write puts it into docs/sizing.md)
    python -m loadtest.sizing estimate --tasks 50000 --rate 200    (from the figures in docs/results/sizing.json)

Owns the formulas, the tables and the command line. `sizing_measure` measures.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.prompts import KINDS, TOKENS
from loadtest.server_process import ROOT, leave_on_sigterm

PAGE, KEPT = ROOT / "docs" / "sizing.md", ROOT / "docs" / "results" / "sizing.json"
BEGIN, END = "<!-- sizing: begin -->", "<!-- sizing: end -->"
BUSY = 0.7  # of the cores: beyond that a queue's length is a matter of luck


def estimate(
    figures: Mapping[str, Any], *, tasks: int, rate: float, kind: str, tokens: int
) -> dict[str, float]:
    """Bytes and cores for so many tasks and requests a second, by the formulas of docs/sizing.md."""
    file, device = figures["a_task"][kind]["file"], figures["a_task"][kind]["device"]
    place = figures["places"]
    return {
        "server: memory with no prompt loaded": place["a server with one task, nothing loaded"]
        + tasks * place["host memory: a task that is not loaded"],
        "server: device memory for all prompts": tasks * device,
        "server: disk for cache_dir": tasks * (file + place["snapshot in cache_dir"]),
        "redis: memory": tasks * (file + place["redis, beside the file's bytes"]),
        "cores, of all servers": rate * request_ms(figures, kind, tokens) / 1000 / BUSY,
    }


def request_ms(figures: Mapping[str, Any], kind: str, tokens: int) -> float:
    """Processor milliseconds of one request with one text of so many tokens, in batches: tokenising and the forward by
    the straight line between the lengths that were measured, and all else by a server with a formula in the model's
    place. Each is measured by itself: a small difference of two large figures is their noise.

    Raises:
        ValueError: a part that cannot be so: it takes nothing, or less.

    """
    parts = {"forward": _forward_ms(figures, kind, tokens), "HTTP": figures["http_ms"]["16"]}
    for name, ms in parts.items():
        if not ms > 0:
            raise ValueError(f"{name} takes {ms:.2f} ms a request by these figures: measure again")
    return sum(parts.values())


def _forward_ms(figures: Mapping[str, Any], kind: str, tokens: float) -> float:
    most = max(one["batch"] for one in figures["forward_ms"])
    line = sorted(
        (o["tokens"], o["ms"]) for o in figures["forward_ms"] if o["kind"] == kind and o["batch"] == most
    )
    return float(np.interp(tokens, [at for at, _ in line], [ms for _, ms in line]))


def shown(figures: Mapping[str, Any]) -> str:
    """The figures as docs/sizing.md has them."""
    where = figures["machine"]
    kinds = [
        (
            f"{kind}, {TOKENS} virtual tokens" if kind != "bare" else kind,
            _kib(one["file"]),
            _kib(one["device"]),
        )
        for kind, one in figures["a_task"].items()
    ]
    places = [(name, _kib(size)) for name, size in figures["places"].items()]
    lengths = sorted({one["tokens"] for one in figures["forward_ms"]})
    costs: dict[tuple[str, int], list[str]] = {}
    for one in figures["forward_ms"]:
        costs.setdefault((one["kind"], one["batch"]), []).append(f"{one['ms']:.2f}")
    rows = [(kind, str(batch), *found) for (kind, batch), found in costs.items()]
    requests = [
        (connections, f"{ms:.2f}", f"{figures['http_ms'][connections]:.2f}")
        for connections, ms in figures["request_ms"].items()
    ]
    one = request_ms(figures, "prefix", 27)
    cores = estimate(figures, tasks=1, rate=200, kind="prefix", tokens=27)["cores, of all servers"]
    return "\n\n".join(
        (
            _prose(
                f"`python -m loadtest.sizing measure`, {where['date']}, commit {where['commit']}, "
                f"{where['cores']} cores of {where['cpu']}, {figures['dtype']}, {figures['tasks']:,} tasks; load "
                f"average at the start {where['load_average']}."
            ),
            _table(("prompt (two labels)", "file, KiB", "device slot, KiB"), kinds),
            _table(("one more task takes, beside its file", "KiB"), places),
            _table(
                (
                    "processor ms a row, tokenised: prompt",
                    "rows in the batch",
                    *(f"{n} tokens" for n in lengths),
                ),
                rows,
            ),
            _table(
                ("connections", "processor ms a request, 27 tokens: the whole server", "all but the model"),
                requests,
            ),
            _prose(
                f"So 200 requests a second of 27 tokens under prefixes want 200 × {one:.2f} / 1000 / {BUSY} ="
                f" {cores:.2f} cores: the row in a batch, and all but the model."
            ),
        )
    )


def _prose(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _kib(size: float) -> str:
    return f"{size / 1024:,.1f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.sizing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="measure this machine")
    one.add_argument(
        "--tasks", type=int, default=2000, help="over which a task's part is measured (%(default)s)"
    )
    one.add_argument("--write", action="store_true", help="keep the figures and write docs/sizing.md")
    one.add_argument(
        "--quick", action="store_true", help="shows that everything runs; its figures mean nothing"
    )
    two = commands.add_parser("estimate", help="what so many tasks and requests need, by the kept figures")
    two.add_argument("--tasks", type=int, required=True)
    two.add_argument("--rate", type=float, required=True, help="requests a second, one text each")
    two.add_argument("--kind", choices=KINDS, default="prefix", help="of prompts (%(default)s)")
    two.add_argument("--tokens", type=int, default=27, help="of a text (%(default)s)")
    two.add_argument("--figures", type=Path, default=KEPT, help="another machine's figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure or estimate, and print."""
    leave_on_sigterm()
    options = parse(arguments)
    if options.command == "estimate":
        if not options.figures.is_file():
            sys.exit(f"sizing: no {options.figures}; run `python -m loadtest.sizing measure --write` first")
        figures = json.loads(options.figures.read_text(encoding="utf-8"))
        try:
            needs = estimate(
                figures, tasks=options.tasks, rate=options.rate, kind=options.kind, tokens=options.tokens
            )
        except (KeyError, ValueError) as error:
            sys.exit(f"sizing: {options.figures}: {error}")
        for name, value in needs.items():
            print(
                f"{name:40}{value:8.2f}" if name.startswith("cores") else f"{name:40}{value / 2**30:8.2f} GiB"
            )
        return
    from loadtest.sizing_measure import measure  # with torch, which an estimate does without

    figures = measure(options.tasks, quick=options.quick)
    print(shown(figures))
    if options.write and not options.quick:
        KEPT.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{shown(figures)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
