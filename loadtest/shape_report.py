"""What a shaped load came to, for people and machines: markdown, JSON and a picture beside locust's own report.

Owns: how it looks. Must not know: how anything was sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from loadtest.bench.machine import machine
from loadtest.bench.plots import pyplot, save
from loadtest.record import Record
from loadtest.shapes import Bounds
from loadtest.timeline import GREEDY, OTHERS
from loadtest.verdicts import Check, judge, remarks, rows

_INK, _FAINT = "#222222", "#9aa0a8"
_COLOURS: Final = {OTHERS: "#2f6fb2", GREEDY: "#d08a2e", "refused": "#8c4a5a", "failed": "#b3261e"}
_MARGIN: Final = 8  # MiB: a line that hardly rises is to look like one
_SMOOTH: Final = 3  # seconds of a point of the picture
_LOOPS: Final = {
    "closed": "closed loop (locust): each user waits for its answer",
    "open": "open loop: sent at intended times, latency counts from them",
}


@dataclass(frozen=True)
class Result:
    """One shape's runs: locust's, and the open loop's if there was one."""

    name: str
    passed: bool
    records: Sequence[Record]
    checks: Sequence[Sequence[Check]]  # for each record
    notes: Sequence[str]


def result(
    name: str, records: Sequence[Record], bounds: Bounds, exit_code: int, *, unsent: str = ""
) -> Result:
    """Judge the runs; locust's own exit code counts as well, and an open loop that is missing: `unsent` says why."""
    checks = [judge(record, bounds) for record in records]
    fine = not unsent and all(check.passed for found in checks for check in found)
    notes = []
    if exit_code not in (0, 1) or (exit_code and all(check.passed for check in checks[0])):
        notes.append(f"locust ended with exit code {exit_code}: see its output")
    if unsent:
        checks[0].append(Check("open loop", unsent, "sent, or --no-open-loop", False))
    return Result(name, fine and exit_code == 0, records, checks, notes)


def write(
    made: Result, prefix: Path, *, command: str, told: str, facts: Mapping[str, Any], bounds: Bounds
) -> None:
    """Write `prefix`.md, .json and .png."""
    where = machine()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    draw(made, Path(f"{prefix}.png"))
    plain = {
        "name": made.name,
        "passed": made.passed,
        "command": command,
        "target": {"told": told, **facts},
        "machine": where,
        "bounds": bounds.as_plain(),
        "notes": list(made.notes),
        "runs": [
            {
                **record.as_plain(),
                "phases": rows(record),
                "remarks": list(remarks(record)),
                "checks": [asdict(check) for check in checks],
            }
            for record, checks in zip(made.records, made.checks, strict=True)
        ],
    }
    Path(f"{prefix}.json").write_text(json.dumps(plain, allow_nan=False), encoding="utf-8")
    lines = [
        f"# {made.name}: {'passed' if made.passed else 'FAILED'}", "", f"`{command}`", "", f"Against {told}.", "",
    ]  # fmt: skip
    for record, checks in zip(made.records, made.checks, strict=True):
        lines += [f"## {_LOOPS[record.loop].capitalize()}", "", *_table(rows(record)), ""]
        lines += [f"- {remark}" for remark in remarks(record)] + [""]
        lines += [
            *_table(
                [{"bound": c.name, "found": c.found, "wanted": c.wanted, "": _verdict(c)} for c in checks]
            ),
            "",
        ]
    lines += [f"- {note}" for note in made.notes]
    lines += [
        f"![over time]({Path(f'{prefix}.png').name})",
        "",
        f"{where['date']}, commit {where['commit']}, {where['cpu']}, {where['cores']} cores, load average "
        f"{where['load_average']} at the end.",
        "",
    ]
    Path(f"{prefix}.md").write_text("\n".join(lines), encoding="utf-8")


def told(made: Result) -> str:
    """The verdict in lines for a terminal."""
    lines = []
    for record, checks in zip(made.records, made.checks, strict=True):
        lines.append(_LOOPS[record.loop])
        lines += ["  " + ", ".join(f"{name} {value}" for name, value in row.items()) for row in rows(record)]
        lines += [f"  {remark}" for remark in remarks(record)]
        lines += [
            f"  {_verdict(check):6} {check.name}: {check.found} (wanted: {check.wanted})" for check in checks
        ]
    return "\n".join([*lines, *made.notes, f"{made.name}: {'passed' if made.passed else 'FAILED'}"])


def draw(made: Result, file: Path) -> Path:
    """Answers a second and latency over time, a column for each loop; for a soak the server's memory below."""
    plt = pyplot()
    memory = any(record.memory for record in made.records) and made.records[0].shape == "soak"
    wide, high = len(made.records), 3 if memory else 2
    figure, all_axes = plt.subplots(
        high, wide, figsize=(4.6 * wide + (4.0 if wide == 1 else 0), 2.2 * high + 0.8), layout="constrained",
        squeeze=False, sharex="col", sharey="row",
    )  # fmt: skip
    for column, record in enumerate(made.records):
        axes = all_axes[:, column]
        zero = record.stretches[0].begin if record.stretches else 0.0
        _draw_rate(axes[0], record, zero)
        _draw_latency(axes[1], record, zero)
        if memory and record.memory:
            _draw_memory(axes[2], record, zero)
        elif memory:
            axes[2].axis("off")
            axes[1].tick_params(labelbottom=True)
        _draw_phases(axes, record, zero)
        axes[0].set_title(_LOOPS[record.loop].partition(":")[0], loc="left", fontsize=9, color="#555", pad=16)
        axes[2 if memory and record.memory else 1].set_xlabel("seconds", fontsize=9)
        if record.stretches:
            axes[0].set_xlim(-1, record.stretches[-1].end - zero + 0.5)
    labels = ("a second", "latency, ms", "memory, MiB")
    for label, axes in zip(labels, all_axes[:, 0], strict=False):
        axes.set_ylabel(label, fontsize=9)
    for one in all_axes.flat:
        one.tick_params(labelsize=8)
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#eceef1")
        one.set_axisbelow(True)
    all_axes[0][0].set_ylim(bottom=0)
    all_axes[0][0].yaxis.set_major_formatter("{x:,.0f}")
    for axes in all_axes[:2, 0]:
        if axes.get_legend_handles_labels()[0]:  # nothing was answered otherwise
            axes.legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(f"{made.name}: {'passed' if made.passed else 'FAILED'}", x=0.01, ha="left", fontsize=11)
    return save(figure, file)


def _draw_rate(axes: Any, record: Record, zero: float) -> None:
    seconds = record.timeline.seconds()[1:-1]  # the first and the last one are cut
    at = [second + 0.5 - zero for second in seconds]
    for group in _groups(record):
        found = [record.timeline.between(second, second + 1, group).answered for second in seconds]
        axes.plot(
            at, found, color=_COLOURS[group or OTHERS], linewidth=1.4, label=f"{group or ''} answered".strip()
        )
    for outcome in ("refused", "failed"):
        found = [getattr(record.timeline.between(second, second + 1), outcome) for second in seconds]
        if any(found):
            axes.plot(at, found, color=_COLOURS[outcome], linewidth=1.2, linestyle=":", label=outcome)


def _draw_latency(axes: Any, record: Record, zero: float) -> None:
    seconds = record.timeline.seconds()
    for group in _groups(record):
        for share, style, name in ((0.99, "-", "p99"), (0.5, "--", "p50")):
            points = []
            for second in seconds[: -_SMOOTH + 1]:
                part = record.timeline.between(second, second + _SMOOTH, group)
                # A gap in the line where nothing was answered.
                value = part.percentile(share) if part.answered else float("nan")
                points.append((second + _SMOOTH / 2 - zero, value))
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=_COLOURS[group or OTHERS], linestyle=style,
                    linewidth=1.6 if style == "-" else 1.0, label=f"{group or ''} {name}".strip(),
                )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def _draw_memory(axes: Any, record: Record, zero: float) -> None:
    sizes = [size / 2**20 for _, size in record.memory]
    axes.plot([at - zero for at, _ in record.memory], sizes, color=_INK)
    axes.set_ylim(min(sizes) - _MARGIN, max(sizes) + _MARGIN)


def _draw_phases(all_axes: Any, record: Record, zero: float) -> None:
    for nth, stretch in enumerate(record.stretches):
        for axes in all_axes:
            if nth % 2:
                axes.axvspan(
                    stretch.begin - zero, stretch.end - zero, color="#f3f5f8", zorder=-2, linewidth=0
                )
        all_axes[0].annotate(
            stretch.name, ((stretch.begin + stretch.end) / 2 - zero, 1.0), xycoords=("data", "axes fraction"),
            xytext=(0, 3), textcoords="offset points", ha="center", fontsize=7, color=_FAINT,
        )  # fmt: skip


def _groups(record: Record) -> tuple[str | None, ...]:
    return (OTHERS, GREEDY) if record.shape == "greedy" else (None,)


def _table(found: Sequence[Mapping[str, str]]) -> list[str]:
    names = list(dict.fromkeys(name for row in found for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(row.get(name, "") for name in names) + " |" for row in found]


def _verdict(check: Check) -> str:
    return "ok" if check.passed else "FAILED"
