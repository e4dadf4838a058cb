"""From scores to labels. Must not know: where scores come from or go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prompt_store import Manifest

_THRESHOLD: Final = 0.5


def chosen_labels(manifest: Manifest, scores: Sequence[float]) -> list[str]:
    """The label of a row, or for a multi-label prompt every label at its threshold or above."""
    if not manifest.multi_label:
        return [manifest.labels[max(range(len(scores)), key=scores.__getitem__)]]
    thresholds = manifest.thresholds or (_THRESHOLD,) * len(scores)
    return [
        label
        for label, score, least in zip(manifest.labels, scores, thresholds, strict=True)
        if score >= least
    ]
