"""What a model is tried out with when it is loaded.

Owns the check of a family that we have not tested (rows packed together must score as each row alone, and a prefix must
change its own row) and the batches on which a recorded model is compared. Knows nothing of where models come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from backbone.errors import UnsupportedBackbone
from backbone.family import bare_manifest
from backbone.model import Backbone
from backbone.prompts import DevicePrompt
from backbone.rows import Row, text_row

TESTED_FAMILIES = frozenset({
    "albert", "bert", "electra", "gpt2", "llama", "modernbert", "opt", "qwen3", "roberta", "xlm-roberta",
})  # fmt: skip


_LONG_LINE = 600  # tokens


@torch.inference_mode()
def check_packing(backbone: Backbone) -> None:
    """Refuse a backbone whose packed rows see each other, or whose prefixes are ignored.

    Raises:
        UnsupportedBackbone: with the reason.

    """
    bare, prefixed = _prompts(backbone)
    rows = _rows(backbone, (5, 9, 3))
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


def samples(backbone: Backbone, *, thorough: bool) -> list[tuple[list[Row], list[DevicePrompt]]]:
    """Batches on which a recorded model is compared with the stock one: lengths, prefixes, segments, last positions.

    `thorough` adds a long line, for families that we have not tested.
    """
    bare, prefixed = _prompts(backbone)
    longest = min(9, backbone.max_positions)
    at_the_end = replace(prefixed, position_offset=backbone.max_positions - longest)
    lone, *pair = _rows(backbone, (1, longest, 4))
    made = [
        (_rows(backbone, (5, 3)), [bare, prefixed]),
        ([lone], [bare]),
        ([replace(row, second=2) for row in pair], [at_the_end, prefixed]),
    ]
    if thorough:  # a line longer than any row: some models look at its length
        made.append(
            (_rows(backbone, [longest] * (_LONG_LINE // longest)), [prefixed] * (_LONG_LINE // longest))
        )
    return made


def _prompts(backbone: Backbone) -> tuple[DevicePrompt, DevicePrompt]:
    """One without anything, and one with a prefix that differs from layer to layer."""
    shape = backbone.shape
    tensors = {"verbalizer.label_embeddings": torch.zeros(2, shape.hidden_size)}
    manifest = bare_manifest(shape, max_tokens=min(backbone.max_positions, 64))
    bare = backbone.bind(manifest, tensors)
    size = (shape.layers, 2, shape.kv_heads, shape.head_dim)
    generator = torch.Generator().manual_seed(0)
    for kind in ("key", "value"):
        tensors[f"prefix.{backbone.prefix_stack}.{kind}"] = torch.randn(size, generator=generator)
    return bare, backbone.bind(manifest, tensors)


def _rows(backbone: Backbone, lengths: Sequence[int]) -> list[Row]:
    ids = [i for i in range(backbone.tokenizer.vocab_size) if i not in backbone.tokenizer.special_ids]
    return [text_row([ids[(at + i) % len(ids)] for i in range(length)]) for at, length in enumerate(lengths)]
