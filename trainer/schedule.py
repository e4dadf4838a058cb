"""Owns what happens when: steps, evaluations, the learning rate's factor, and the batches of each epoch.

Pure functions of settings, seed and epoch; knows no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.config import OptimiserConfig

# Batches of like length are made within stretches of this many batches, so that order stays mostly random.
STRETCH = 50


@dataclass(frozen=True)
class Schedule:
    """How many steps there are, when dev is scored, and the learning rate's factor at each step."""

    steps_per_epoch: int
    steps: int
    warmup: int
    evaluate_at: frozenset[int]

    @classmethod
    def of(cls, settings: OptimiserConfig, examples: int) -> Schedule:
        """The schedule of resolved settings for a training set of this size."""
        assert settings.batch_size is not None, "settings are resolved before training"
        assert settings.epochs is not None, "settings are resolved before training"
        per_epoch = math.ceil(examples / settings.batch_size)
        steps = per_epoch * settings.epochs
        count = min(settings.evaluations, steps)
        at = frozenset(round(steps * (nth + 1) / count) for nth in range(count))
        return cls(per_epoch, steps, round(settings.warmup * steps), at)

    def factor(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero; `step` counts from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return (self.steps - step) / max(1, self.steps - self.warmup)


def batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every example once, rows of like length together, order drawn from (seed,
    epoch).
    """
    generator = np.random.default_rng([seed, 2, epoch])
    order = generator.permutation(len(lengths))
    result: list[list[int]] = []
    for begin in range(0, len(order), size * STRETCH):
        stretch = sorted(order[begin : begin + size * STRETCH].tolist(), key=lambda at: lengths[at])
        result += [stretch[at : at + size] for at in range(0, len(stretch), size)]
    return [result[at] for at in generator.permutation(len(result))]
