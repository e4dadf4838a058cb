"""Stock transformers models as references: one row at a time, with an attention written out here.

Shares nothing with the code under test but the checkpoints: rows, positions and prefixes are put together by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from tests.backbone.families import CAUSAL, FAMILIES, checkpoint


def stock(family: str) -> Any:
    return hf.AutoModel.from_pretrained(checkpoint(family)).eval()


def headed(family: str) -> Any:
    """With its language-model head."""
    auto: Any = hf.AutoModelForCausalLM if family in CAUSAL else hf.AutoModelForMaskedLM
    return auto.from_pretrained(checkpoint(family)).eval()


def tokenizer_of(family: str) -> Any:
    return hf.AutoTokenizer.from_pretrained(checkpoint(family))


def first_position(family: str) -> int:
    """RoBERTa and its kin count from behind the padding index, which is 1 in these checkpoints."""
    return 2 if family in ("roberta", "xlm-roberta", "mpnet") else 0


def around(family: str, ids: list[int]) -> list[int]:
    """With the special tokens that the family's tokenizer puts around a text."""
    tokenizer = tokenizer_of(family)
    if family in CAUSAL:
        return ids
    names = ("<s>", "</s>") if FAMILIES[family].tokens == "bytes" else ("[CLS]", "[SEP]")
    begin, end = tokenizer.convert_tokens_to_ids(list(names))
    return [begin, *ids, end]


@contextmanager
def prefix_in_every_layer(
    model: Any, keys: Tensor, values: Tensor, recorded: list[tuple[Tensor, Tensor]] | None = None
) -> Iterator[None]:
    """Let a stock model see `keys` and `values`, each [layers, tokens, kv_heads, head_dim], before its one row; each
    layer's own keys and values, [tokens, kv_heads, head_dim], go to `recorded`.
    """
    calls = 0

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float,
        sliding_window: int | None = None, **_: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        nonlocal calls
        assert mask is None
        layer, calls = calls, calls + 1
        if recorded is not None:
            recorded.append((key[0].transpose(0, 1), value[0].transpose(0, 1)))
        key = torch.cat([keys[layer].transpose(0, 1)[None], key], dim=2)
        value = torch.cat([values[layer].transpose(0, 1)[None], value], dim=2)
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
        length, front = query.shape[2], keys.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool)
        if getattr(module, "is_causal", False):
            seen = seen.tril()
        if sliding_window is not None:
            distance = torch.arange(length)[:, None] - torch.arange(length)[None]
            seen &= distance.abs() < sliding_window
        seen = torch.cat([torch.ones(length, front, dtype=torch.bool), seen], dim=1)
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("written out", attend)
    AttentionMaskInterface.register("written out", lambda *_, **__: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("written out")
    yield
    model.set_attn_implementation(before)
    assert calls == len(keys)
