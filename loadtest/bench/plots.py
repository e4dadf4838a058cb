"""The forward's pictures. Owns how they look; what is drawn comes as plain figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = {"bare": "#8a8f98", "prefix": "#2f6fb2", "soft": "#d08a2e", "peer": "#b9bec6", "peft": "#8c4a5a"}
_MARKERS = "os^D"


@dataclass(frozen=True)
class Bar:
    """One bar: whose it is decides its colour."""

    name: str
    rate: float
    colour: str


def bars(groups: Mapping[str, Sequence[Bar]], file: Path, *, title: str) -> Path:
    """Horizontal bars of rows per second, one panel for each group of sides that saw the same texts."""
    plt = pyplot()
    shown = {name: group for name, group in groups.items() if group}
    heights = [len(group) + 0.8 for group in shown.values()]
    figure, all_axes = plt.subplots(
        len(shown), 1, figsize=(8.6, 0.29 * sum(heights) + 0.6), height_ratios=heights, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, (name, group) in zip(all_axes[:, 0], shown.items(), strict=True):
        drawn = list(group)[::-1]
        made = axes.barh(
            [bar.name for bar in drawn], [bar.rate for bar in drawn], color=[COLOURS[bar.colour] for bar in drawn],
            height=0.72,
        )  # fmt: skip
        axes.bar_label(made, fmt="{:,.0f}", padding=3, fontsize=8)
        axes.set_title(name, loc="left", fontsize=9, color="#444")
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.set_xticks([])
        axes.margins(x=0.1, y=0.01)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save(figure, file)


@dataclass(frozen=True)
class Line:
    """Rows per second against the number of tasks."""

    name: str
    kind: str
    mode: int  # which mode it is: its marker
    tasks: Sequence[int]
    rates: Sequence[float]


def against_tasks(lines: Sequence[Line], levels: Mapping[str, float], file: Path, *, title: str) -> Path:
    """Throughput against the number of tasks mixed, on a logarithmic axis; `levels` are sides without prompts."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8.6, 4.6), layout="constrained")
    for line in lines:
        axes.plot(
            line.tasks, line.rates, marker=_MARKERS[line.mode % len(_MARKERS)], color=COLOURS[line.kind],
            linewidth=2, markersize=6, label=line.name, linestyle="-" if line.mode == 0 else "--",
        )  # fmt: skip
    counts = sorted({count for line in lines for count in line.tasks})
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_xlim(counts[0] * 0.8, counts[-1] * 1.25)
    highest = max([*levels.values(), *(rate for line in lines for rate in line.rates)])
    axes.set_ylim(0, highest * 1.12)
    heights = _apart(sorted(levels.values()), highest * 0.042)
    for (name, rate), height in zip(sorted(levels.items(), key=lambda item: item[1]), heights, strict=True):
        axes.axhline(rate, color="#9aa0a8", linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        axes.annotate(
            f"{name}  {rate:,.0f}", (1.01, height), xycoords=("axes fraction", "data"), fontsize=8, color="#555",
            va="center",
        )  # fmt: skip
    axes.set_xlabel("tasks mixed", fontsize=9)
    axes.set_ylabel("rows per second", fontsize=9)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.annotate(
        "dotted: bare backbone, no prompts", (1.01, 1.0), xycoords="axes fraction", fontsize=8, color="#777",
        va="top",
    )  # fmt: skip
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eceef1", zorder=-1)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left")
    return save(figure, file)


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Heights for labels of these rising values, pushed up where two would lie on each other."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + gap) if placed else value)
    return placed


def pyplot() -> Any:
    """Matplotlib without a screen, imported only when something is drawn."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, file: Path) -> Path:
    """Write a figure and let it go."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    pyplot().close(figure)
    return file
