"""Owns the measures: accuracy, F1, confusion, the majority baseline. Plain numbers in and out; knows no
model.

Single-label tasks: accuracy, macro-F1 = mean over labels of F1. Multi-label tasks: accuracy is exact match of
the whole label set, macro-F1 as before. F1 of a label that neither occurs nor is predicted counts as 0, as in
scikit-learn with zero_division=0; the mean runs over the labels that occur or are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Targets = npt.NDArray[np.float32]
"""[examples, labels], 1.0 where the label applies."""


@dataclass(frozen=True)
class LabelScores:
    """One label's precision, recall and F1, and how many examples have it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """How a set of predictions compares with the gold labels. Fractions in [0, 1].

    `confusion[g][p]` counts examples of gold label g predicted as p; for a multi-label task, where gold and
    predicted sets have no pairing, it is empty.
    """

    examples: int
    accuracy: float
    macro_f1: float
    per_label: tuple[LabelScores, ...]
    confusion: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, object]:
        """Plain data for metrics.json."""
        return asdict(self)


def one_hot(label_sets: Sequence[Sequence[str]], labels: Sequence[str]) -> Targets:
    """Label names of each example → targets [examples, labels]."""
    index = {label: at for at, label in enumerate(labels)}
    targets = np.zeros((len(label_sets), len(labels)), dtype=np.float32)
    for row, names in enumerate(label_sets):
        for name in names:
            targets[row, index[name]] = 1.0
    return targets


def decide(
    scores: npt.NDArray[np.floating], *, multi_label: bool, thresholds: Sequence[float] | None = None
) -> Targets:
    """Scores [examples, labels] → decisions: the best label, or every label at its threshold (0.5) or above.

    The scores are probabilities for a multi-label task; for the others anything that orders the labels.
    """
    if multi_label:
        return (scores >= np.asarray(thresholds if thresholds is not None else 0.5)).astype(np.float32)
    decisions = np.zeros(scores.shape, dtype=np.float32)
    decisions[np.arange(len(scores)), scores.argmax(axis=1)] = 1.0
    return decisions


def measure(gold: Targets, predicted: Targets, labels: Sequence[str], *, multi_label: bool) -> Scores:
    """Compare predictions with gold labels, both [examples, labels] of 0 and 1."""
    hits, chosen, support = (gold * predicted).sum(axis=0), predicted.sum(axis=0), gold.sum(axis=0)
    precision = np.divide(hits, chosen, out=np.zeros_like(hits), where=chosen > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    f1 = np.divide(2 * hits, chosen + support, out=np.zeros_like(hits), where=chosen + support > 0)
    present = chosen + support > 0
    confusion = () if multi_label else tuple(tuple(map(int, row)) for row in gold.T @ predicted)
    return Scores(
        examples=len(gold),
        accuracy=float((gold == predicted).all(axis=1).mean()) if len(gold) else 0.0,
        macro_f1=float(f1[present].mean()) if present.any() else 0.0,
        per_label=tuple(
            LabelScores(label, float(p), float(r), float(f), int(s))
            for label, p, r, f, s in zip(labels, precision, recall, f1, support, strict=True)
        ),
        confusion=confusion,
    )


def majority(train: Targets, gold: Targets, labels: Sequence[str], *, multi_label: bool) -> Scores:
    """Scores of always answering what training examples have most often: the floor that any prompt must beat.

    Multi-label: the commonest whole label set, ties to the first in training order.
    """
    sets, first, counts = np.unique(train, axis=0, return_index=True, return_counts=True)
    best = min(range(len(sets)), key=lambda at: (-counts[at], first[at]))
    predicted = np.repeat(sets[best][None].astype(np.float32), len(gold), axis=0)
    return measure(gold, predicted, labels, multi_label=multi_label)
