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
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.scores import Scores
from trainer.state import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def titled(title: str) -> Table:
    """An empty table. Names and reasons in it are `Text`: rich would read square brackets in a str as its markup."""
    return Table(title=Text(title, style="table.title"), title_justify="left")


def results_table(task_id: str, split: str, rows: Sequence[TableRow]) -> Table:
    """The comparison that ends a run."""
    examples = rows[0].scores[0].examples
    table = titled(f"{task_id}: {split} set, {examples} examples")
    table.add_column("")
    table.add_column("accuracy %", justify="right")
    table.add_column("macro-F1 %", justify="right")
    table.add_column("seeds", justify="right")
    for row in rows:
        table.add_row(
            Text(row.name),
            percent([scores.accuracy for scores in row.scores]),
            percent([scores.macro_f1 for scores in row.scores]),
            str(len(row.scores)) if len(row.scores) > 1 else "–",
        )
    return table


def many_table(finished: Mapping[str, Path], failures: Mapping[str, str]) -> Table:
    """What came of many tasks: of those that finished the figures in their metrics.json, of the others the reason."""
    table = titled("accuracy % on the set that each task reports")
    for name in ("task", "majority", "head only", "prompt", "version"):
        table.add_column(name, justify="left" if name in ("task", "version") else "right")
    for task_id, path in finished.items():
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            cells = [row["accuracy"] for row in metrics["summary"].values()]
            majority, bare, *own = (f"{100 * cell['mean']:.1f}" for cell in cells)
            if own and len(metrics["seeds"]) > 1 and "ensemble" not in metrics:  # one value has no spread
                own[-1] += f" ± {100 * cells[-1]['spread']:.1f}"
            version = metrics["version"][:12]
        except (OSError, ValueError, KeyError, TypeError):  # one that finished before, and was damaged since
            table.add_row(task_id, "", "", "?", Text(f"{path} cannot be read"))
            continue
        # The last is what is published: the ensemble, where there is one, comes after its seeds.
        table.add_row(task_id, majority, bare, own[-1] if own else "–", version)
    for task_id, reason in failures.items():
        table.add_row(task_id, "", "", "failed", Text(reason))
    return table


def plain_text(table: Table) -> str:
    """The table as text without colours, for table.txt."""
    console = Console(file=io.StringIO(), width=100, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def write_metrics(path: Path, metrics: Mapping[str, object]) -> None:
    """metrics.json, readable by people and programs."""
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode())  # that it is there says that the run is finished


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
    figure.suptitle(title).set_parse_math(False)  # a backbone's folder may have dollars in its name
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
    _write_png(figure, path)


def write_sweep(path: Path, title: str, curves: Mapping[str, Sequence[Sequence[Point]]], best: str) -> None:
    """Mean dev accuracy of each setting's seeds over the share of its training, as a PNG; `best` stands out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title).set_parse_math(False)
    for name, seeds in curves.items():
        length = min(map(len, seeds))
        means = [100 * statistics.fmean(points[at].dev_accuracy for points in seeds) for at in range(length)]
        chosen = name == best
        axes.plot(
            range(1, length + 1),
            means,
            marker="o",
            markersize=5 if chosen else 3,
            linewidth=2.5 if chosen else 1.2,
            alpha=1 if chosen else 0.7,
            zorder=3 if chosen else 2,
            label=name,
        )
    axes.set_xlabel("evaluation")
    axes.set_ylabel("dev accuracy (%), mean of seeds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a template may have dollars in it, which are no formula
    _write_png(figure, path)


def _write_png(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_atomically(path, picture.getvalue())  # on a full disk: one line, and no torn picture
