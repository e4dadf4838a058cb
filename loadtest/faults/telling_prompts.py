"""Prompts whose scores tell which task and version gave them, for any text, on any backbone and in any dtype.

Owns: how the two numbers are written into a head's biases and read out of an answer's probabilities. Must not know:
stores, servers, HTTP.

The head's weights are zero, so that its biases alone make the scores. Each label is a binary digit: a one has a high
score, a zero a low one. The first label always is a one and the second always a zero, so that the others can be read
against them; a mixture of two versions reads as neither.
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

LETTERLESS: Final = "1 "
"""What a text begins with so that the tests' fake backbone, too, scores by the biases alone."""


@dataclass(frozen=True, slots=True)
class Telling:
    """A prompt file and its name."""

    version: str
    data: bytes


def telling_prompt(task_id: str, task: int, number: int, shape: BackboneRef, *, soft: bool) -> Telling:
    """Version `number` of the `task`-th task; with `soft` it has 20 virtual tokens, which cost but change nothing."""
    if not (0 <= task < TASKS and 0 <= number < VERSIONS):
        raise ValueError(f"at most {TASKS:,} tasks and {VERSIONS:,} versions can be told apart")
    manifest = Manifest.model_validate(
        {
            "task_id": task_id,
            "labels": _LABELS,
            "method": "prompt-tuning" if soft else "head-only",
            "backbone": shape,
            "template": f"{{soft:{TOKENS}}} {{text}}" if soft else "{text}",
            "pooling": "mean",
            "position_offset": TOKENS if soft else 0,
            "max_length": {"tokens": 128},
            "head": {
                "type": "linear",
                "layers": ({"in_features": shape.hidden_size, "out_features": len(_LABELS)},),
            },
        }
    )
    digits = [1, 0, *(_digits(task * VERSIONS + number))]
    tensors = {
        "head.0.weight": np.zeros((len(_LABELS), shape.hidden_size), np.float16),
        "head.0.bias": np.array([_BIAS if digit else -_BIAS for digit in digits], np.float16),
    }
    if soft:
        rng = np.random.default_rng(task)
        tensors["soft_prompt"] = (rng.standard_normal((TOKENS, shape.embedding_width)) * 0.1).astype(
            np.float16
        )
    data = encode_prompt(manifest, tensors)
    return Telling(version_of(data), data)


def read_scores(probs: Sequence[float]) -> tuple[int, int] | None:
    """The numbers of the task and the version that gave these scores; None when no single one can have given them."""
    if len(probs) != len(_LABELS) or not all(0.0 < prob < 1.0 for prob in probs):
        return None
    one, zero = probs[0], probs[1]
    if not math.isclose(math.log(one / zero), 2 * _BIAS, rel_tol=0.02):
        return None
    told = 0
    for prob in probs[2:]:
        digit = prob * prob > one * zero
        near = one if digit else zero
        if not 1 / _TOLERANCE < prob / near < _TOLERANCE:
            return None
        told = told * 2 + digit
    return divmod(told, VERSIONS)


def _digits(number: int) -> list[int]:
    return [number >> at & 1 for at in reversed(range(_DIGITS))]
