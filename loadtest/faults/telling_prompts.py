"""Prompts whose scores tell which task and version gave them, for any text, on any backbone and in any dtype.

Owns: how the two numbers are written into a head's biases and read out of an answer's probabilities, and the further
labels that show which soft prompt was there. Must not know: stores, servers, HTTP, what those labels should score.

Each label is a binary digit, whose weights are zero, so that its bias alone makes the score: a one has a high score, a
zero a low one. The first label always is a one and the second always a zero, so that the others can be read against
them; a mixture of two versions reads as neither. With a soft prompt there are hints besides: labels without a bias
whose weights are the version's own, so that their scores are those of that soft prompt, text and weights together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from loadtest.prompts import TOKENS
from prompt_store import BackboneRef, Manifest, encode_prompt, version_of

TASKS: Final = 1 << 10
VERSIONS: Final = 1 << 14
_DIGITS: Final = 10 + 14
_BIAS: Final = 3.0  # a one's score is e^6 times a zero's
_TOLERANCE: Final = 1.05  # a bfloat16's rounding is within it; half a version is not
_LABELS: Final = ("one", "zero", *(f"digit-{at:02d}" for at in range(_DIGITS)))
HINTS: Final = 8
_HINTS: Final = tuple(f"hint-{at}" for at in range(HINTS))
SOFT_PROMPTS: Final = 16
"""So few that the scores of each can be computed beforehand; a version and the next one never have the same."""

LETTERLESS: Final = "1 "
"""What a text begins with so that the tests' fake backbone, too, scores by the biases alone."""


@dataclass(frozen=True, slots=True)
class Telling:
    """A prompt file and its name."""

    version: str
    data: bytes
    nbytes: int = 0  # of its tensors


def telling_prompt(task_id: str, task: int, number: int, shape: BackboneRef, *, soft: bool) -> Telling:
    """Version `number` of the `task`-th task; with `soft` it has 20 virtual tokens and the hints that show them."""
    if not (0 <= task < TASKS and 0 <= number < VERSIONS):
        raise ValueError(f"at most {TASKS:,} tasks and {VERSIONS:,} versions can be told apart")
    manifest = _manifest(task_id, shape, soft=soft)
    digits = [1, 0, *(_digits(task * VERSIONS + number))]
    weights = np.zeros((len(manifest.labels), shape.hidden_size), np.float16)
    bias = np.zeros(len(manifest.labels), np.float16)
    bias[: len(digits)] = [_BIAS if digit else -_BIAS for digit in digits]
    tensors = {"head.0.weight": weights, "head.0.bias": bias}
    if soft:
        weights[len(_LABELS) :] = hint_weights(task, number, shape.hidden_size)
        rng = np.random.default_rng(soft_prompt_of(task, number))
        vectors = rng.standard_normal((TOKENS, shape.embedding_width)) * 0.1
        tensors["soft_prompt"] = vectors.astype(np.float16)
    data = encode_prompt(manifest, tensors)
    return Telling(version_of(data), data, sum(tensor.nbytes for tensor in tensors.values()))


def _manifest(task_id: str, shape: BackboneRef, *, soft: bool) -> Manifest:
    labels = (*_LABELS, *_HINTS) if soft else _LABELS
    return Manifest.model_validate(
        {
            "task_id": task_id,
            "labels": labels,
            "method": "prompt-tuning" if soft else "head-only",
            "backbone": shape,
            "template": f"{{soft:{TOKENS}}} {{text}}" if soft else "{text}",
            "pooling": "mean",
            "position_offset": TOKENS if soft else 0,
            "max_length": {"tokens": 128},
            "head": {
                "type": "linear",
                "layers": ({"in_features": shape.hidden_size, "out_features": len(labels)},),
            },
        }
    )


def soft_prompt_of(task: int, number: int) -> int:
    """Which of the soft prompts a version has."""
    return (7 * task + number) % SOFT_PROMPTS


def hint_weights(task: int, number: int, width: int) -> np.ndarray:
    """The weights [HINTS, width] of a version's hints: ones with random signs, which are exact in every dtype."""
    return np.random.default_rng((task, number)).choice(np.array([-1.0, 1.0], np.float32), (HINTS, width))


def read_hints(probs: Sequence[float]) -> np.ndarray:
    """The hints' scores before the softmax [HINTS]; of an answer that `read_scores` could read."""
    # A one's score is as far above zero as a zero's is below it.
    return np.log(np.array(probs[len(_LABELS) :]) / math.sqrt(probs[0] * probs[1]))


def read_scores(probs: Sequence[float]) -> tuple[int, int] | None:
    """The numbers of the task and the version that gave these scores; None when no single one can have given them."""
    if len(probs) not in (len(_LABELS), len(_LABELS) + HINTS) or not all(0.0 < prob < 1.0 for prob in probs):
        return None
    one, zero = probs[0], probs[1]
    if not math.isclose(math.log(one / zero), 2 * _BIAS, rel_tol=0.02):
        return None
    told = 0
    for prob in probs[2 : len(_LABELS)]:
        digit = prob * prob > one * zero
        near = one if digit else zero
        if not 1 / _TOLERANCE < prob / near < _TOLERANCE:
            return None
        told = told * 2 + digit
    return divmod(told, VERSIONS)


def _digits(number: int) -> list[int]:
    return [number >> at & 1 for at in reversed(range(_DIGITS))]
