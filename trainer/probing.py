"""Owns the head-only reference of a run: examples through the frozen model, and a linear probe on what comes out.

Knows no prompt that is trained.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from backbone import Backbone
from prompt_store import Manifest
from trainer.data import TaskData
from trainer.evaluation import Encoded, encode, score, shared
from trainer.head_only import fit_probe
from trainer.outcome import Reference
from trainer.ranks import ALONE, Ranks
from trainer.starts import zero_head


def encode_splits(backbone: Backbone, manifest: Manifest, data: TaskData) -> dict[str, Encoded]:
    """Train, dev and test as rows of this manifest."""
    encoder = backbone.row_encoder(manifest)
    sets = {"train": data.train, "dev": data.dev, "test": data.test}
    return {name: encode(encoder, examples, data.labels) for name, examples in sets.items()}


def probe(
    backbone: Backbone,
    manifest: Manifest,
    data: TaskData,
    *,
    between: Callable[[], None],
    ranks: Ranks = ALONE,
) -> Reference:
    """Fit the linear probe on features that are computed once; `manifest` is the head-only one.

    `between` is called after each split, and may raise.
    """
    splits = encode_splits(backbone, manifest, data)
    bare = zero_head(manifest)
    states: dict[str, Tensor] = {}
    for name, split in splits.items():
        states[name] = shared(backbone, ranks, manifest, bare, split.rows, "features")
        between()
    fitted = fit_probe(
        states["train"],
        splits["train"].targets,
        states["dev"],
        splits["dev"].targets,
        data.labels,
        multi_label=data.multi_label,
    )
    reported = "test" if data.test else "dev"
    test = score(
        fitted.logits(states[reported]), splits[reported].targets, data.labels, multi_label=data.multi_label
    )
    cut = [row.truncated for split in splits.values() for row in split.rows]
    return Reference(fitted, test, len(cut), sum(cut))
