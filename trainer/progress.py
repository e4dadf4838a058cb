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

from trainer.learner import Learner
from trainer.report import Point


class Bar:
    """One training's bar. The loss shown is smoothed over about fifty steps."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._loss: float | None = None
        self._dev = "–"

    def stepped(self, step: int, loss: float) -> None:
        """Move it."""
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        self._progress.update(self._task, completed=step, loss=f"{self._loss:.3f}", dev=self._dev)

    def shown(self, visible: bool) -> None:
        """Show it, or take it off the screen."""
        self._progress.update(self._task, visible=visible)

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
    """A context manager that holds the bars of a run; a `trainer.listeners.Listener`."""

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
        self._bars: dict[str, Bar] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def admitted(self, learner: Learner) -> None:
        """A bar for a learner, at its step."""
        if learner.name not in self._bars:
            name = learner.name.replace("seed-", "seed ")
            self._bars[learner.name] = self.bar(name, learner.schedule.steps, learner.step)
            if learner.step and not learner.finished:
                self._progress.console.print(
                    f"{name}: goes on at step {learner.step} of {learner.schedule.steps}", highlight=False
                )
        self._bars[learner.name].shown(True)

    def stepped(self, learner: Learner, loss: float) -> None:
        """Move its bar."""
        self._bars[learner.name].stepped(learner.step, loss)

    def evaluated(self, learner: Learner, point: Point) -> None:
        """Show its new dev score."""
        self._bars[learner.name].evaluated(point)

    def left(self, learner: Learner) -> None:
        """Its bar goes: of hundreds, only those that move have room on a screen."""
        self._bars[learner.name].shown(False)

    def bar(self, name: str, steps: int, step: int = 0) -> Bar:
        """A bar for a training of so many steps, at this one; its owner moves it."""
        task = self._progress.add_task(name, total=steps, completed=step, loss="–", dev="–")
        return Bar(self._progress, task)
