"""Owns the company of learners that are trained in one batch: who is admitted, who leaves, and when all are saved.

A learner that has finished leaves its rows to the next that waits. Knows no files of examples, no tables, and not why
a prompt is learned; a step is made by `trainer.step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from backbone import Backbone
from trainer.checkpoints import Checkpoints
from trainer.deterministic import deterministic, one_core
from trainer.errors import TrainingFailedError
from trainer.learner import Learner
from trainer.listeners import Listener
from trainer.ranks import ALONE, Ranks
from trainer.step import step

# Rows of one step, as many learners as fit: more gain nothing on a CPU's cores, and take memory for the backward.
ROWS_AT_ONCE = {"cpu": 128, "cuda": 2048}


def train_together(
    backbone: Backbone,
    learners: Iterable[Learner],
    *,
    checkpoints: Checkpoints,
    listener: Listener,
    stop: Callable[[], bool] = lambda: False,
    rows_at_once: int | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Learner]:
    """Train learners, as many at a time as have room in one step; yields each when it has finished or rests.

    They are taken from `learners` in order, when there is room: an iterator may prepare them as late as that. A
    learner that was saved goes on where it stood. When `stop` asks for it, all are saved and the iterator ends.

    Raises TrainingFailedError where the device has no memory for a step.
    """
    capacity = rows_at_once or ranks.count * ROWS_AT_ONCE.get(backbone.device.type, ROWS_AT_ONCE["cuda"])
    waiting = iter(learners)
    upcoming: Learner | None = next(waiting, None)
    active: list[Learner] = []
    while True:
        if leaving := [learner for learner in active if learner.resting]:
            active = [learner for learner in active if not learner.resting]
            # Saved before anyone acts on their end: a run that is killed then finds the same company again.
            checkpoints.save([*leaving, *active])
            for learner in leaving:
                listener.left(learner)
                yield learner
        while upcoming is not None and (not active or _rows(active) + upcoming.batch_size <= capacity):
            checkpoints.restore(upcoming)
            listener.admitted(upcoming)
            active.append(upcoming)
            upcoming = next(waiting, None)
        if not active:
            return
        # Who was saved at its end leaves before any step, so that the others' company is what it was.
        if any(learner.resting for learner in active):
            continue
        if stop():
            checkpoints.save(active)
            return
        with deterministic(), one_core(), _memory_for(backbone, active):
            losses = step(backbone, active, ranks)
            evaluated = False
            for learner, value in zip(active, losses, strict=True):
                listener.stepped(learner, value)
                if learner.failure is None and learner.evaluates_now:
                    evaluated = True
                    if (point := learner.evaluate()) is not None:
                        listener.evaluated(learner, point)
        if evaluated:
            checkpoints.save(active, at_most_often=True)


def _rows(learners: Sequence[Learner]) -> int:
    return sum(learner.batch_size for learner in learners)


@contextmanager
def _memory_for(backbone: Backbone, learners: Sequence[Learner]) -> Iterator[None]:
    """A step of these learners may be too much for the device."""
    try:
        yield
    except torch.OutOfMemoryError:
        rows = _rows(learners)
        less = (
            f"give rows_at_once less, such as --set rows_at_once={rows // 2}; to go on with what is saved, give it in "
            "the folder's config.toml, many.json or sweep.json"
            if len(learners) > 1
            else "one prompt's batch is so large: start anew with a smaller optimiser.batch_size or prompt.max_tokens"
        )
        raise TrainingFailedError(
            f"{backbone.device} has no memory for a step of {rows} rows: {less}"
        ) from None
