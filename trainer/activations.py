"""Owns the reading of real keys and values out of the frozen model: what a prefix starts from. Knows no
method.

Keys are taken as attention sees them, after any rotation by position, which is how a prefix is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from backbone import Backbone, Row, attention
from backbone.family import bare_manifest


@torch.no_grad()
def key_values(backbone: Backbone, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keys and values of every layer for a text of these tokens: each [layers, tokens, kv_heads, head_dim],
    float32.
    """
    count = len(token_ids)
    row = Row(tuple(token_ids), lead=0, second=count, spans=((0, count),), num_prompt_tokens=count)
    labels = torch.zeros(2, backbone.shape.hidden_size)
    manifest = bare_manifest(backbone.shape, max_tokens=count)
    bare = backbone.bind(manifest, {"verbalizer.label_embeddings": labels})
    with _recorded() as layers:
        backbone.features([row], [bare])
    keys, values = zip(*layers, strict=True)
    return torch.stack(keys), torch.stack(values)


@contextmanager
def _recorded() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within the block, note what the registered attention function is given, layer after layer."""
    layers: list[tuple[Tensor, Tensor]] = []

    def recording(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
        # [1, kv_heads, T, head_dim] → [T, kv_heads, head_dim]
        layers.append((key[0].transpose(0, 1).float().cpu(), value[0].transpose(0, 1).float().cpu()))
        return attention.packed_attention(module, query, key, value, *rest, **named)

    AttentionInterface.register(attention.NAME, recording)
    try:
        yield layers
    finally:
        AttentionInterface.register(attention.NAME, attention.packed_attention)
