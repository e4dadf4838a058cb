"""A straight line through points over time: does something grow, and is that sure.

Owns: the line and its error. Standard library only. Must not know: what grows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_SURE: Final = 2.0  # standard errors


@dataclass(frozen=True)
class Trend:
    """How fast something grows, how sure that is (one standard error), over how long."""

    slope: float  # a second
    error: float
    seconds: float

    @property
    def growth(self) -> float:
        """By how much it grew over the whole time, by the line."""
        return self.slope * self.seconds

    @property
    def sure_growth(self) -> float:
        """By how much it grew at least: two standard errors less; points that jump about are no growth."""
        return max(0.0, (self.slope - _SURE * self.error) * self.seconds)

    def told(self, unit: str) -> str:
        """For a person."""
        if math.isinf(self.error):
            return "too few points to tell"
        hour = 3600
        return (
            f"{self.slope * hour:+,.2f} ± {_SURE * self.error * hour:,.2f} {unit} an hour "
            f"({self.growth:+,.2f} {unit} in the {self.seconds:,.0f} s that were looked at)"
        )


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """The line of least squares through (second, value); flat and unsure through fewer than three points."""
    if len(points) < 3:
        return Trend(0.0, math.inf, 0.0 if not points else points[-1][0] - points[0][0])
    middle = statistics.fmean(at for at, _ in points)
    level = statistics.fmean(value for _, value in points)
    spread = sum((at - middle) ** 2 for at, _ in points)
    slope = sum((at - middle) * (value - level) for at, value in points) / spread
    left = sum((value - level - slope * (at - middle)) ** 2 for at, value in points)
    return Trend(slope, math.sqrt(left / (len(points) - 2) / spread), points[-1][0] - points[0][0])
