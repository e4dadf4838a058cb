"""Owns what a person sees while a run works: bars with loss, dev score and time left. Knows no tensors."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trainer.report import Point


class SeedBar:
    """One seed's bar; a `trainer.loop.Listener`. The loss shown is smoothed over about fifty steps."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._loss: float | None = None
        self._dev = "–"

    def stepped(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        self._progress.update(self._task, completed=step, loss=f"{self._loss:.3f}", dev=self._dev)

    def evaluated(self, point: Point) -> None:
        """Show the new dev score; without a terminal, where no bar moves, as a line of its own."""
        self._dev = f"{100 * point.dev_accuracy:.1f}"
        self._progress.update(self._task, dev=self._dev)
        if not self._progress.console.is_terminal:
            name = self._progress.tasks[self._task].description
            self._progress.console.print(
                f"{name}: epoch {point.epoch:.2f}, loss {point.loss:.3f}, dev {self._dev} %", highlight=False
            )


class TrainingProgress:
    """A context manager that holds the bars of a run."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("dev {task.fields[dev]} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def seed(self, seed: int, steps: int) -> SeedBar:
        """A new bar for a seed of so many steps."""
        return SeedBar(
            self._progress, self._progress.add_task(f"seed {seed}", total=steps, loss="–", dev="–")
        )
