"""Random prompts for load tests: right in shape for a backbone, meaningless in content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from prompt_store import BackboneRef, Manifest, Target, encode_prompt, open_store

Kind = Literal["bare", "soft", "prefix"]
KINDS: tuple[Kind, ...] = ("bare", "soft", "prefix")
TOKENS = 20


def make_prompt(
    task_id: str, kind: Kind, shape: BackboneRef, *, seed: int
) -> tuple[Manifest, dict[str, np.ndarray]]:
    """A two-label prompt with 20 virtual tokens (none for "bare")."""
    rng = np.random.default_rng(seed)

    def normal(*size: int) -> np.ndarray:
        return (rng.standard_normal(size) * 0.1).astype(np.float32)

    tensors = {"head.0.weight": normal(2, shape.hidden_size), "head.0.bias": normal(2)}
    if kind == "soft":
        tensors["soft_prompt"] = normal(TOKENS, shape.embedding_width)
    elif kind == "prefix":
        size = (shape.layers, TOKENS, shape.kv_heads, shape.head_dim)
        tensors |= {"prefix.encoder.key": normal(*size), "prefix.encoder.value": normal(*size)}
    manifest = Manifest.model_validate(
        {
            "task_id": task_id,
            "labels": ("no", "yes"),
            "method": "head-only" if kind == "bare" else "prompt-tuning" if kind == "soft" else "p-tuning-v2",
            "backbone": shape,
            "template": f"{{soft:{TOKENS}}} {{text}}" if kind == "soft" else "{text}",
            "pooling": "mean",
            "position_offset": TOKENS if kind == "soft" else 0,
            "max_length": {"tokens": 512},
            "head": {"type": "linear", "layers": ({"in_features": shape.hidden_size, "out_features": 2},)},
        }
    )
    return manifest, tensors


async def fill_store(url: str, task_ids: Sequence[str], kind: Kind, shape: BackboneRef) -> None:
    """Publish one prompt for each task and make it current."""
    store = open_store(url)
    try:
        for seed, task_id in enumerate(task_ids):
            published = await store.publish(encode_prompt(*make_prompt(task_id, kind, shape, seed=seed)))
            await store.set_alias(task_id, "current", [Target(published.version)], expected_revision=None)
    finally:
        await store.aclose()
