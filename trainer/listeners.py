"""Owns what may be known of learners while they are trained, and telling it to several who want to know.

The progress bars listen, and so do experiment logs. Knows no training.
"""

from __future__ import annotations

from typing import Protocol

from trainer.learner import Learner
from trainer.report import Point


class Listener(Protocol):
    """What a caller may want to know while prompts are learned; the progress bars are one."""

    def admitted(self, learner: Learner) -> None:
        """A learner begins, or goes on, at its `step`."""

    def stepped(self, learner: Learner, loss: float) -> None:
        """It made a step; `loss` is its batch's."""

    def evaluated(self, learner: Learner, point: Point) -> None:
        """Its dev set was scored."""

    def left(self, learner: Learner) -> None:
        """It has finished, or rests."""


class Listeners:
    """Several listeners as one: each is told in its turn."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def admitted(self, learner: Learner) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.admitted(learner)

    def stepped(self, learner: Learner, loss: float) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.stepped(learner, loss)

    def evaluated(self, learner: Learner, point: Point) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.evaluated(learner, point)

    def left(self, learner: Learner) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.left(learner)
