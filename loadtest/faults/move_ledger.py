"""Which versions a task may answer with now, at each replica, while its `current` alias moves.

Owns: the moves of each task in their order, and how far each replica is known to have followed. Must not know: HTTP,
stores, how answers are asked for.

A replica goes through a task's moves in order; it may skip some, and lag, but never goes back. So once it has
acknowledged a move, or answered with a version that only a later move leads to, whatever is asked of it from then on
must be that move's version or a later one's. A rollback is a move, too: the same version can be right, wrong and right
again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class _Task:
    moves: list[str] = field(default_factory=list)  # the version that each leads to
    reached: dict[str, int] = field(default_factory=dict)  # by replica: the first move that it can be at


class MoveLedger:
    """Safe for threads. A task's moves are made one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[int, _Task] = {}

    def begin(self, task: int, version: str) -> int:
        """A move is about to be asked for: from now on it may have happened. Its number."""
        with self._lock:
            moves = self._tasks.setdefault(task, _Task()).moves
            moves.append(version)
            return len(moves) - 1

    def acknowledge(self, task: int, move: int, replica: str) -> None:
        """The replica has said that the move is made there."""
        with self._lock:
            self._reach(task, replica, move)

    def reached(self, task: int) -> Mapping[str, int]:
        """How far each replica is known to be, for a question that is about to be sent."""
        with self._lock:
            return dict(self._tasks[task].reached)

    def current(self, task: int) -> str:
        """The version that the latest move leads to."""
        with self._lock:
            return self._tasks[task].moves[-1]

    def answered(self, task: int, replica: str, reached: Mapping[str, int], version: str) -> str | None:
        """Take in an answer to a question that was sent when `reached` held; in words what is wrong with it."""
        least = reached.get(replica, 0)
        with self._lock:
            moves = self._tasks[task].moves
            try:
                # The replica may be further, but this is certain: it was at this move or a later one when it answered.
                self._reach(task, replica, moves.index(version, least))
            except ValueError:
                if version in moves:
                    last = len(moves) - 1 - moves[::-1].index(version)
                    return f"gone back: {replica} was at move {least} of task {task} and answered as of move {last}"
                return f"never current: {replica} answered for task {task} with version {version[:12]}"
        return None

    def _reach(self, task: int, replica: str, move: int) -> None:
        known = self._tasks[task].reached
        known[replica] = max(known.get(replica, 0), move)
