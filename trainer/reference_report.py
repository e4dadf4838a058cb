"""Owns how the references are told: a row of each strategy, the learning rate that dev chose, metrics.json.

Knows scores; knows no model and trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from trainer.reference_folder import Cell
from trainer.report import TableRow, mean_and_spread
from trainer.scores import Scores

NAMES = {
    "majority": "majority",
    "zero-shot": "zero-shot",
    "head-only": "head only",
    "full-fine-tuning": "full fine-tuning",
    "fixed-prompt": "fixed prompt, model tuned",
}


@dataclass(frozen=True)
class ReferenceRow:
    """One line of the table. `test` is on dev where there is no test set; a row without seeds has one score of each.

    `lr` is the learning rate that dev chose; `seconds` were spent on all seeds and learning rates of this row.
    """

    name: str
    dev: tuple[Scores, ...]
    test: tuple[Scores, ...]
    lr: float | None
    seconds: float

    @property
    def scores(self) -> tuple[Scores, ...]:
        """What is reported, as in `trainer.report.TableRow`."""
        return self.test

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and spread of each measure, as metrics.json has them."""
        return TableRow(self.name, self.test).summary()


def untrained_row(name: str, cell: Cell) -> ReferenceRow:
    """A row that has neither seeds nor a learning rate."""
    return ReferenceRow(NAMES[name], (cell.dev,), (cell.test,), None, cell.seconds)


def tuned_row(
    strategy: str, cells: Sequence[Cell], rates: Sequence[float]
) -> tuple[ReferenceRow, tuple[str, ...]]:
    """The row of the learning rate that is best on dev over all seeds (of equals, the first of `rates`), and a line
    that says so where there was a choice. Test scores choose nothing.
    """

    def on_dev(lr: float) -> tuple[float, float]:
        own = [cell.dev for cell in cells if cell.lr == lr]
        return (
            mean_and_spread([scores.accuracy for scores in own])[0],
            mean_and_spread([scores.macro_f1 for scores in own])[0],
        )

    best = max(rates, key=on_dev)
    own = [cell for cell in cells if cell.lr == best]
    row = ReferenceRow(
        NAMES[strategy],
        tuple(cell.dev for cell in own),
        tuple(cell.test for cell in own),
        best,
        round(sum(cell.seconds for cell in cells), 1),
    )
    tried = ", ".join(f"{lr:g}: {100 * on_dev(lr)[0]:.1f} %" for lr in rates)
    return row, (f"{row.name}: learning rate {best:g}, chosen on dev ({tried})",) if len(rates) > 1 else ()


def figures(rows: Mapping[str, ReferenceRow], cells: Sequence[Cell], split: str) -> dict[str, object]:
    """What metrics.json says of the scores; `split` is the reported set's name."""
    return {
        "reported_split": split,
        "summary": {row.name: row.summary() for row in rows.values()},
        "rows": {
            name: {
                "dev": TableRow(row.name, row.dev).summary(),
                split: row.summary(),
                "lr": row.lr,
                "seconds": row.seconds,
            }
            for name, row in rows.items()
        },
        "seeds": [
            {
                "name": cell.name,
                "seed": cell.seed,
                "lr": cell.lr,
                "dev": cell.dev.as_dict(),
                split: cell.test.as_dict(),
                "curve": [asdict(point) for point in cell.points],
                "steps": cell.steps,
                "seconds": cell.seconds,
            }
            for cell in cells
        ],
        "seconds": round(sum(row.seconds for row in rows.values()), 1),
    }
