"""Sides that take turns: how any two things are compared here.

A machine is never the same for minutes on end. All sides run in every round, the order turns around every other
round, and what counts is the median of the rounds' own ratios: whatever slows a whole round down leaves its ratios
alone. Knows nothing of what a side does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class SideFailed(Exception):
    """A side that can go no further, and why. It leaves the comparison; the others go on."""


@dataclass(frozen=True)
class Rounds:
    """Seconds of each side in each round, for the same work; `failed` says why a side is missing."""

    seconds: dict[str, list[float]]
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Seconds of a side's median round."""
        return statistics.median(self.seconds[name])

    def ratios(self, one: str, other: str) -> list[float]:
        """How many times as fast `one` was as `other`, round by round."""
        return [b / a for a, b in zip(self.seconds[one], self.seconds[other], strict=True)]

    def ratio(self, one: str, other: str) -> float:
        """How many times as fast `one` was as `other`: the median of the rounds' own ratios."""
        return statistics.median(self.ratios(one, other))

    def spread(self, name: str) -> float:
        """How far a side's rounds lie apart, as a part of the median: large where the machine was not quiet."""
        return (max(self.seconds[name]) - min(self.seconds[name])) / self.median(name)


def alternate(
    sides: Mapping[str, Callable[[], float]], rounds: int, *, console: Console | None = None, title: str = ""
) -> Rounds:
    """Run each side once unmeasured, then `rounds` times by turns; a side returns its own seconds.

    Progress is a bar on a terminal; elsewhere a round of something with a `title` is a line.
    """
    console = console or Console()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    failed: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(sides) * (rounds + 1))
        for nth in range(rounds + 1):
            what = f"round {nth} of {rounds}" if nth else "warm-up"
            if title and not console.is_terminal:
                console.print(f"{title}: {what}", markup=False)
            for name in list(sides)[:: 1 if nth % 2 == 0 else -1]:
                progress.update(task, description=f"{what}: {name}")
                if name in failed:
                    continue
                try:
                    took = sides[name]()
                except SideFailed as error:
                    failed[name] = str(error)
                    continue
                if nth:
                    seconds[name].append(took)
                progress.advance(task)
    return Rounds({name: took for name, took in seconds.items() if name not in failed}, failed)
