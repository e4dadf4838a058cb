"""Random prompts of every kind for tiny backbones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backbone import Backbone
from prompt_store import Manifest


def manifest(backbone: Backbone, *, soft: int = 0, labels: int = 2, **changes: Any) -> Manifest:
    """A manifest of a linear head; `changes` replace fields."""
    fields: dict[str, Any] = {
        "task_id": "test",
        "labels": tuple(f"label{i}" for i in range(labels)),
        "method": "p-tuning-v2",
        "backbone": backbone.shape,
        "template": f"{{soft:{soft}}} {{text}}" if soft else "{text}",
        "pooling": "last" if backbone.is_causal else "mean",
        "position_offset": soft,
        "max_length": {"tokens": backbone.max_positions},
        "head": {
            "type": "linear",
            "layers": ({"in_features": backbone.shape.hidden_size, "out_features": labels},),
        },
    }
    return Manifest.model_validate({**fields, **changes})


def tensors(
    backbone: Backbone, *, soft: int = 0, prefix: int = 0, labels: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Tensors of a prompt with a one-layer head, large enough that two seeds differ by more than 0.1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    shape = backbone.shape
    result = {"head.0.weight": normal(labels, shape.hidden_size), "head.0.bias": normal(labels)}
    if soft:
        result["soft_prompt"] = normal(soft, shape.embedding_width)
    if prefix:
        size = (shape.layers, prefix, shape.kv_heads, shape.head_dim)
        result[f"prefix.{backbone.prefix_stack}.key"] = normal(*size, scale=2.0)
        result[f"prefix.{backbone.prefix_stack}.value"] = normal(*size, scale=2.0)
    return result
