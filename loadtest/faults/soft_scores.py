"""What the hints of telling prompts must score: computed in this process, for a few texts under every soft prompt.

Owns: the pooled states of those texts, and how far an answer may be from them. Must not know: servers, HTTP, who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from loadtest.faults.telling_prompts import (
    HINTS,
    SOFT_PROMPTS,
    hint_weights,
    read_hints,
    soft_prompt_of,
    telling_prompt,
)
from prompt_store import decode_prompt

_NEAR: Final = 0.1
"""How far a hint's score may be off. Measured in bfloat16 on a CPU, a lane's answers were within 0.00001; held against
the 15 other soft prompts, each of 512 answers had a hint that was more than 0.3 off."""


class SoftScores:
    """The right scores for `texts`. Safe for threads."""

    def __init__(self, backbone: Any, texts: Sequence[str]) -> None:
        """`backbone` is one of `load_backbone`; this takes a while."""
        states = []
        for soft in range(SOFT_PROMPTS):
            prompt = decode_prompt(telling_prompt("reference", 0, soft, backbone.shape, soft=True).data)
            assert soft_prompt_of(0, soft) == soft
            rows = backbone.row_encoder(prompt.manifest).encode(texts)
            pooled = backbone.features(rows, [backbone.load_prompt(prompt)] * len(rows))
            states.append(pooled.detach().cpu().numpy())
        self._states = np.stack(states)  # [soft prompts, texts, hidden]

    def wrong(
        self, task: int, number: int, texts: Sequence[int], rows: Sequence[Sequence[float]]
    ) -> str | None:
        """What is wrong with a version's answers to some of the texts, in words; None: nothing."""
        soft = soft_prompt_of(task, number)
        # One product for all rows: [texts, hints].
        right = self._states[soft, list(texts)] @ hint_weights(task, number, self._states.shape[-1]).T
        for at, (probs, scores) in enumerate(zip(rows, right, strict=True)):
            hints = read_hints(probs)
            off = float(np.abs(hints - scores).max()) if hints.shape == (HINTS,) else np.inf
            if not off < _NEAR:
                return f"row {at} is {off:.3f} off what soft prompt {soft} scores"
        return None
