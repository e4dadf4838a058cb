"""Rows with prompts, and padded rows, against stock transformers models that are fed by hand."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.backbone.families import CAUSAL, FAMILIES, PREFIXED, tiny
from tests.backbone.prompts import manifest, tensors
from tests.backbone.reference import (
    around,
    first_position,
    headed,
    prefix_in_every_layer,
    stock,
    tokenizer_of,
)

TEXTS = (
    "the film was not very good",
    "who",
    "a great warm book",
    "where is the order ? thanks , please never late",
)
EXACT = {"atol": 1e-5, "rtol": 1e-5}
WORDS = (("bad", "terrible"), ("great",))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mix_equals_the_stock_model_on_a_padded_batch(family: str, side: str) -> None:
    bone, tokenizer = tiny(family), tokenizer_of(family)
    encoded = tokenizer(list(TEXTS), padding=True, padding_side=side, return_tensors="pt")
    real = encoded.attention_mask.bool()
    positions = (encoded.attention_mask.cumsum(1) - 1).clamp(min=0) + first_position(family)
    with torch.no_grad():
        want = stock(family)(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, position_ids=positions
        ).last_hidden_state
    for place in (0, "last"):
        own = manifest(bone, pooling=place)
        prompt = bone.bind(own, tensors(bone))
        got = bone.features(bone.row_encoder(own).encode(TEXTS), [prompt] * len(TEXTS))
        for row, features in enumerate(got):
            torch.testing.assert_close(features, want[row][real[row]][0 if place == 0 else -1], **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_prompt_within_the_text_equals_embeddings_laid_out_by_hand(family: str) -> None:
    bone, tokenizer, model = tiny(family), tokenizer_of(family), headed(family)
    own = manifest(
        bone, soft=4, template="{text}{soft:4} it was {mask}" + ("" if family in CAUSAL else " ."),
        position_offset=0, pooling="mask", head={"type": "verbalizer", "words": WORDS},
    )  # fmt: skip
    soft = tensors(bone, soft=4)["soft_prompt"]
    got = bone.forward(
        bone.row_encoder(own).encode(TEXTS), [bone.bind(own, {"soft_prompt": soft})] * len(TEXTS)
    )
    spaced = FAMILIES[family].tokens == "bytes"
    tail = "it was" if family in CAUSAL else f"it was{'' if spaced else ' '}{tokenizer.mask_token} ."
    words = [tokenizer.convert_tokens_to_ids([("Ġ" if spaced else "") + w for w in group]) for group in WORDS]
    for text, logits in zip(TEXTS, got, strict=True):
        front, rest = (tokenizer(part, add_special_tokens=False).input_ids for part in (text, tail))
        ids = around(family, front + rest)
        lead = len(front) + (ids[0] != front[0])  # behind the special token, where there is one
        with torch.no_grad():
            embedded = model.get_input_embeddings()(torch.tensor(ids))
            embedded = torch.cat([embedded[:lead], soft, embedded[lead:]])
            scores = model(inputs_embeds=embedded[None]).logits[0]
        at = -1 if family in CAUSAL else len(soft) + ids.index(tokenizer.mask_token_id)
        torch.testing.assert_close(logits, torch.stack([scores[at, i].mean() for i in words]), **EXACT)


def _prefix(family: str) -> tuple[Tensor, Tensor]:
    made = tensors(tiny(family), prefix=5, seed=9)
    stack = f"prefix.{tiny(family).prefix_stack}"
    return made[f"{stack}.key"], made[f"{stack}.value"]


def _with_prefix(family: str, offset: int) -> Tensor:
    """Our states [texts, hidden] of each text's last place, all texts in one batch under one prefix."""
    bone = tiny(family)
    own = manifest(bone, pooling="last", position_offset=offset)
    prompt = bone.bind(own, tensors(bone, prefix=5, seed=9))
    return bone.features(bone.row_encoder(own).encode(TEXTS), [prompt] * len(TEXTS))


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("family", PREFIXED)
def test_a_prefix_equals_attention_written_out(family: str, offset: int) -> None:
    """For every family; the window of ModernBERT and Qwen3 never hides the prefix."""
    model, tokenizer = stock(family), tokenizer_of(family)
    keys, values = _prefix(family)
    for text, features in zip(TEXTS, _with_prefix(family, offset), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        positions = torch.arange(ids.shape[1])[None] + first_position(family) + offset
        extra = {"use_cache": False} if family in CAUSAL else {}
        with torch.no_grad(), prefix_in_every_layer(model, keys, values):
            want = model(input_ids=ids, position_ids=positions, **extra).last_hidden_state[0, -1]
        torch.testing.assert_close(features, want, **EXACT)


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize(
    "family", [name for name in CAUSAL if name != "qwen3"]
)  # whose cache forgets by its window
def test_a_decoders_prefix_equals_its_own_cache(family: str, offset: int) -> None:
    model, tokenizer = stock(family), tokenizer_of(family)
    for text, features in zip(TEXTS, _with_prefix(family, offset), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        cache = hf.DynamicCache()
        for layer, (key, value) in enumerate(zip(*_prefix(family), strict=True)):
            cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], layer)
        with torch.no_grad():
            want = model(
                input_ids=ids, past_key_values=cache, position_ids=torch.arange(ids.shape[1])[None] + offset,
                attention_mask=torch.ones(1, 5 + ids.shape[1], dtype=torch.int64),
            ).last_hidden_state[0, -1]  # fmt: skip
        torch.testing.assert_close(features, want, **EXACT)
