"""Does a model family that we have not tested really work packed?

Owns the check that runs once when such a model is loaded: rows packed together must score as each row alone, and a
prefix must change its own row. Knows nothing of where models come from.
"""

from __future__ import annotations

import torch

from backbone.errors import UnsupportedBackbone
from backbone.family import bare_manifest
from backbone.model import Backbone
from backbone.rows import Row

TESTED_FAMILIES = frozenset({
    "albert", "bert", "electra", "gpt2", "llama", "modernbert", "opt", "qwen3", "roberta", "xlm-roberta",
})  # fmt: skip


@torch.inference_mode()
def check_packing(backbone: Backbone) -> None:
    """Refuse a backbone whose packed rows see each other, or whose prefixes are ignored.

    Raises:
        UnsupportedBackbone: with the reason.

    """
    shape = backbone.shape
    tensors = {"verbalizer.label_embeddings": torch.zeros(2, shape.hidden_size)}
    manifest = bare_manifest(shape, max_tokens=min(backbone.max_positions, 64))
    bare = backbone.bind(manifest, tensors)
    size = (shape.layers, 2, shape.kv_heads, shape.head_dim)
    generator = torch.Generator().manual_seed(0)
    for kind in ("key", "value"):
        tensors[f"prefix.{backbone.prefix_stack}.{kind}"] = torch.randn(size, generator=generator)
    prefixed = backbone.bind(manifest, tensors)
    ids = [i for i in range(backbone.tokenizer.vocab_size) if i not in backbone.tokenizer.special_ids]
    rows = [_row(ids[start : start + length]) for start, length in ((0, 5), (5, 9), (2, 3))]
    try:
        mixed = backbone.features(rows, [bare, prefixed, bare])
        alone = torch.cat(
            [backbone.features([r], [p]) for r, p in zip(rows, (bare, prefixed, bare), strict=True)]
        )
        plain = backbone.features([rows[1]], [bare])
    except UnsupportedBackbone:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UnsupportedBackbone(f"{backbone.name} cannot run packed rows: {error}") from error
    tolerance = 1e-3 if backbone.dtype is torch.float32 else 5e-2
    scale = alone.abs().max().clamp(min=1e-6)
    if not torch.isfinite(alone).all() or ((mixed - alone).abs().max() / scale) > tolerance:
        raise UnsupportedBackbone(
            f"{backbone.name}: rows packed together influence each other in this family"
        )
    if torch.allclose(plain, alone[1:2], atol=1e-6):
        raise UnsupportedBackbone(f"{backbone.name}: this family ignores prefixes")


def _row(ids: list[int]) -> Row:
    return Row(tuple(ids), lead=0, second=len(ids), spans=((0, len(ids)),), num_prompt_tokens=len(ids))
