"""Prefixes of encoder-decoders in code of its own: one row, no packing, attention written out.

The stock model runs with an attention function that puts keys and values in front of those of the row. They have no
position: T5's bias is zero there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from tests.backbone.seq2seq import stock

_given: dict[str, Any] = {"prefix": {}, "where": {}}


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    stack, layer = _given["where"][id(module)]
    length, looked_at = query.shape[2], key.shape[2]
    ahead = 0
    if f"prefix.{stack}.key" in _given["prefix"]:
        before = [
            _given["prefix"][f"prefix.{stack}.{kind}"][layer].transpose(0, 1)[None]
            for kind in ("key", "value")
        ]
        key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        ahead = before[0].shape[2]
    scores = query @ key.transpose(-1, -2) * scaling
    if more.get("position_bias") is not None:
        scores = scores + torch.nn.functional.pad(more["position_bias"], (ahead, 0))
    if stack == "decoder":
        unseen = torch.ones(length, looked_at, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(torch.nn.functional.pad(unseen, (ahead, 0)), float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("written-out", _attend)


@contextmanager
def prefixed(family: str, prefix: Mapping[str, Tensor]) -> Any:
    """The stock model, whose rows see these prefixes."""
    model = stock(family)
    where = {}
    for name, module in model.named_modules():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if name.endswith(("EncDecAttention", "encoder_attn")):
            where[id(module)] = ("cross", numbers[0])
        elif name.endswith(("SelfAttention", "self_attn")):
            where[id(module)] = ("encoder" if "encoder." in name else "decoder", numbers[0])
    _given.update(prefix=prefix, where=where)
    model.set_attn_implementation("written-out")
    try:
        yield model
    finally:
        model.set_attn_implementation("eager")


def states(
    model: Any, ids: Sequence[int], decoder_ids: Sequence[int] | None, soft: Tensor | None = None
) -> Tensor:
    """Last hidden states of the decoder, or of the encoder where the decoder reads nothing: [tokens, hidden]."""
    embedded = model.get_encoder().embed_tokens(torch.tensor([list(ids)]))
    if soft is not None:
        embedded = torch.cat([soft[None], embedded], dim=1)
    encoded = model.get_encoder()(inputs_embeds=embedded).last_hidden_state
    if decoder_ids is None:
        return encoded[0]
    decoded = model.get_decoder()(
        input_ids=torch.tensor([list(decoder_ids)]), encoder_hidden_states=encoded, use_cache=False
    )
    return decoded.last_hidden_state[0]
