"""Owns the measures: accuracy, F1, confusion, the majority baseline. Plain numbers in and out; knows no
model.

Single-label tasks: accuracy, macro-F1 = mean over labels of F1. Multi-label tasks: accuracy is exact match of
the whole label set, macro-F1 as before. F1 of a label that neither occurs nor is predicted counts as 0, as in
scikit-learn with zero_division=0; the mean runs over the labels that occur or are predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Targets = npt.NDArray[np.float32]
"""[examples, labels], 1.0 where the label applies."""

# A confusion matrix of more labels is written without its zeros: 3,000 labels would be 9 million numbers.
MAX_DENSE_LABELS = 200


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

    `confusion` has (gold label, predicted label, examples), labels by their place in `per_label`, in this order and
    without zeros; for a multi-label task, where gold and predicted sets have no pairing, it is empty.
    """

    examples: int
    accuracy: float
    macro_f1: float
    per_label: tuple[LabelScores, ...]
    confusion: tuple[tuple[int, int, int], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for metrics.json.

        There `confusion[g][p]` counts examples of gold label g predicted as p, by place up to MAX_DENSE_LABELS labels
        and by name beyond, where only what occurs is in it.
        """
        plain = {name: value for name, value in vars(self).items() if name not in ("per_label", "confusion")}
        return plain | {"per_label": [asdict(one) for one in self.per_label], "confusion": self._matrix()}

    def _matrix(self) -> list[list[int]] | dict[str, dict[str, int]]:
        names = [one.label for one in self.per_label]
        if len(names) > MAX_DENSE_LABELS:
            sparse: dict[str, dict[str, int]] = {}
            for gold, predicted, count in self.confusion:
                sparse.setdefault(names[gold], {})[names[predicted]] = count
            return sparse
        dense = [[0] * len(names) for _ in names] if self.confusion else []
        for gold, predicted, count in self.confusion:
            dense[gold][predicted] = count
        return dense

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Scores:
        """What `as_dict` made, as it was. Raises KeyError, TypeError, ValueError or AttributeError for other data."""
        per_label = tuple(LabelScores(**one) for one in plain["per_label"])
        place = {one.label: at for at, one in enumerate(per_label)}
        matrix = plain["confusion"]
        if isinstance(matrix, dict):
            cells = [(place[g], place[p], n) for g, row in matrix.items() for p, n in row.items()]
        else:
            cells = [(g, p, n) for g, row in enumerate(matrix) for p, n in enumerate(row) if n]
        return cls(**{**plain, "per_label": per_label, "confusion": tuple(cells)})


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
    # einsum makes no product as large as both.
    hits, chosen, support = np.einsum("el,el->l", gold, predicted), predicted.sum(axis=0), gold.sum(axis=0)
    precision = np.divide(hits, chosen, out=np.zeros_like(hits), where=chosen > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    f1 = np.divide(2 * hits, chosen + support, out=np.zeros_like(hits), where=chosen + support > 0)
    present = chosen + support > 0
    return Scores(
        examples=len(gold),
        accuracy=float((gold == predicted).all(axis=1).mean()) if len(gold) else 0.0,
        macro_f1=float(f1[present].mean()) if present.any() else 0.0,
        per_label=tuple(
            LabelScores(label, float(p), float(r), float(f), int(s))
            for label, p, r, f, s in zip(labels, precision, recall, f1, support, strict=True)
        ),
        confusion=() if multi_label else _confusion(gold, predicted),
    )


def _confusion(gold: Targets, predicted: Targets) -> tuple[tuple[int, int, int], ...]:
    # Counted by example: a product of the two is cubic, and as Python numbers it is what an evaluation would wait for.
    labels = gold.shape[1]
    places, counts = np.unique(gold.argmax(axis=1) * labels + predicted.argmax(axis=1), return_counts=True)
    golds, predictions = np.divmod(places, labels)
    return tuple(zip(golds.tolist(), predictions.tolist(), counts.tolist(), strict=True))


def majority(train: Targets, gold: Targets, labels: Sequence[str], *, multi_label: bool) -> Scores:
    """Scores of always answering what training examples have most often: the floor that any prompt must beat.

    Multi-label: the commonest whole label set, ties to the first in training order.
    """
    sets = Counter(bits.tobytes() for bits in np.packbits(train > 0, axis=1))
    commonest = np.frombuffer(max(sets, key=lambda bits: sets[bits]), dtype=np.uint8)
    answer = np.unpackbits(commonest, count=len(labels)).astype(np.float32)
    return measure(gold, np.repeat(answer[None], len(gold), axis=0), labels, multi_label=multi_label)
