"""Owns what a finished run shows: the table, metrics.json and the curves. Knows no model and trains
nothing.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.scores import Scores


@dataclass(frozen=True)
class Point:
    """One evaluation during training. `loss` is the mean training loss since the point before."""

    epoch: float
    loss: float
    dev_accuracy: float
    dev_macro_f1: float


@dataclass(frozen=True)
class TableRow:
    """One line of the table: a name and its test scores, one per seed (several equal ones have no spread)."""

    name: str
    scores: tuple[Scores, ...]

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and spread of each measure, as metrics.json has them."""
        return {
            "accuracy": _mean_and_spread([scores.accuracy for scores in self.scores]),
            "macro_f1": _mean_and_spread([scores.macro_f1 for scores in self.scores]),
        }


def _mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    mean, spread = mean_and_spread(values)
    return {"mean": mean, "spread": spread}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent(values: Sequence[float]) -> str:
    """Fractions as "81.4 ± 0.3"; without a spread when there is one value."""
    mean, spread = mean_and_spread(values)
    return f"{100 * mean:.1f} ± {100 * spread:.1f}" if len(values) > 1 else f"{100 * mean:.1f}"


def results_table(task_id: str, split: str, rows: Sequence[TableRow]) -> Table:
    """The comparison that ends a run."""
    examples = rows[0].scores[0].examples
    table = Table(title=f"{task_id}: {split} set, {examples} examples", title_justify="left")
    table.add_column("")
    table.add_column("accuracy %", justify="right")
    table.add_column("macro-F1 %", justify="right")
    table.add_column("seeds", justify="right")
    for row in rows:
        table.add_row(
            row.name,
            percent([scores.accuracy for scores in row.scores]),
            percent([scores.macro_f1 for scores in row.scores]),
            str(len(row.scores)) if len(row.scores) > 1 else "–",
        )
    return table


def plain_text(table: Table) -> str:
    """The table as text without colours, for table.txt."""
    console = Console(file=io.StringIO(), width=100, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def write_metrics(path: Path, metrics: Mapping[str, object]) -> None:
    """metrics.json, readable by people and programs."""
    path.write_text(
        json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def write_curves(
    path: Path, title: str, curves: Mapping[int, Sequence[Point]], reference: float | None
) -> None:
    """Loss and dev accuracy over epochs, one line per seed, as a PNG. `reference`: head-only dev accuracy."""
    # matplotlib is imported here: it is slow to start, and only a finished run draws. The Agg canvas is used
    # without pyplot, whose figure registry is global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, dev = figure.subplots(1, 2)
    figure.suptitle(title)
    for seed, points in curves.items():
        epochs = [point.epoch for point in points]
        loss.plot(epochs, [point.loss for point in points], marker="o", markersize=4, label=f"seed {seed}")
        dev.plot(
            epochs,
            [100 * point.dev_accuracy for point in points],
            marker="o",
            markersize=4,
            label=f"seed {seed}",
        )
    if reference is not None:
        dev.axhline(100 * reference, color="0.4", linestyle="--", linewidth=1.2, label="head only")
    loss.set_ylabel("training loss")
    dev.set_ylabel("dev accuracy (%)")
    for axes in (loss, dev):
        axes.set_xlabel("epoch")
        axes.grid(visible=True, color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})
