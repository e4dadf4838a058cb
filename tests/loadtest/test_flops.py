"""The formula against what torch counts while the stock model runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from loadtest.bench.flops import Shape
from tests.backbone.families import checkpoint


def counted(family: str, lengths: list[int]) -> tuple[Shape, int]:
    model = hf.AutoModel.from_pretrained(checkpoint(family), attn_implementation="eager").eval()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # not a layer
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for length in lengths:
            model(input_ids=torch.ones(1, length, dtype=torch.int64))
    # torch counts a causal model's masked half, too.
    return dataclasses.replace(Shape.of(model.config), causal=False), counter.get_total_flops()


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "gpt2", "llama", "qwen3"])
def test_the_formula_counts_what_the_model_computes(family: str) -> None:
    shape, total = counted(family, [5, 17])
    # Rotary embeddings make a small product of their own.
    assert shape.rows([5, 17]) == pytest.approx(total, rel=0.01)


def test_a_causal_query_sees_half_and_the_whole_prefix() -> None:
    shape, _ = counted("bert", [])
    causal = dataclasses.replace(shape, causal=True)
    width = shape.heads * shape.head_dim
    assert causal.attention(9) == 4 * shape.layers * width * 9 * 5
    assert shape.attention(9, 20) - shape.attention(9) == 4 * shape.layers * width * 9 * 20
    assert causal.attention(9, 20) - causal.attention(9) == shape.attention(9, 20) - shape.attention(9)


def test_minilm_is_as_large_as_its_data_sheet_says() -> None:
    shape = Shape(
        layers=6, hidden=384, heads=12, kv_heads=12, head_dim=32, intermediate=1536, gated=False, causal=False
    )
    assert shape.linear_per_token == 2 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
