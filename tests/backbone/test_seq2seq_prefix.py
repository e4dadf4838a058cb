"""Prefixes of an encoder-decoder's three attentions, and soft prompts before its encoder, against other code."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as hf
from transformers import DynamicCache, EncoderDecoderCache

import backbone.relative
from prompt_store import IncompatiblePrompt
from tests.backbone.prompts import tensors
from tests.backbone.seq2seq import STACKS, T5S, checkpoint, prefix, reading, stock, tiny, tokenizer
from tests.backbone.seq2seq_reference import prefixed, states

TEXT, OTHER = "where is the order ? thanks , please never late", "a great warm book"
EXACT = {"atol": 5e-5, "rtol": 2e-4}
VIRTUAL = 4
TESTED = ("t5", "bart")
SUBSETS = (("encoder",), ("decoder",), ("cross",), ("encoder", "cross"), STACKS)


def _ids(family: str, text: str, reads: str) -> tuple[list[int], list[int]]:
    ids = tokenizer(family)(text)["input_ids"]
    start = stock(family).config.decoder_start_token_id
    return ids, [start] if reads == "start" else [start, *ids[:-1]]


@pytest.mark.parametrize("reads", ["start", "copy"])
@pytest.mark.parametrize("stacks", SUBSETS, ids="+".join)
@pytest.mark.parametrize("family", TESTED)
def test_each_prefix_reaches_its_stack(family: str, stacks: tuple[str, ...], reads: str) -> None:
    """States and gradients of every tensor; the row stands between others that have other prefixes."""
    bone = tiny(family)
    own = reading(bone, reads)
    mine = {name: value.requires_grad_() for name, value in prefix(bone, stacks, VIRTUAL, 1).items()}
    prompt = bone.bind(own, tensors(bone) | mine)
    other = bone.bind(own, tensors(bone) | prefix(bone, STACKS, 3, 2))
    plain = bone.bind(own, tensors(bone))
    rows = bone.row_encoder(own).encode([OTHER, TEXT, TEXT])
    direction = torch.randn(bone.shape.hidden_size, generator=torch.Generator().manual_seed(9))
    got = bone.features(rows, [other, prompt, plain])
    gradients = torch.autograd.grad(got[1] @ direction, list(mine.values()))
    ids, decoder_ids = _ids(family, TEXT, reads)
    with prefixed(family, mine) as model:
        want = states(model, ids, decoder_ids)[-1]
        expected = torch.autograd.grad(want @ direction, list(mine.values()))
    torch.testing.assert_close(got[1], want, **EXACT)
    assert (got[1] - got[2]).abs().max() > 0.05, "the prefix must matter"
    for name, gradient, wanted in zip(mine, gradients, expected, strict=True):
        assert wanted.abs().max() > 1e-3, name
        torch.testing.assert_close(gradient, wanted, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("family", TESTED)
def test_an_encoder_alone_takes_its_prefix(family: str) -> None:
    bone = tiny(family)
    own, mine = reading(bone, None, pooling=-1), prefix(bone, ("encoder",), VIRTUAL, 1)
    rows = bone.row_encoder(own).encode([OTHER, TEXT])
    got = bone.features(rows, [bone.bind(own, tensors(bone) | mine)] * 2)[1]
    with prefixed(family, mine) as model, torch.no_grad():
        torch.testing.assert_close(got, states(model, _ids(family, TEXT, "start")[0], None)[-1], **EXACT)


@pytest.mark.parametrize("family", TESTED)
def test_soft_prompts_stand_before_the_encoders_embeddings(family: str) -> None:
    bone = tiny(family)
    own = reading(bone, "start", soft=VIRTUAL)
    weights = tensors(bone, soft=VIRTUAL) | prefix(bone, ("decoder",), 2, 5)
    rows = bone.row_encoder(own).encode([OTHER, TEXT])
    got = bone.features(rows, [bone.bind(own, weights)] * 2)[1]
    ids, decoder_ids = _ids(family, TEXT, "start")
    with prefixed(family, weights) as model, torch.no_grad():
        want = states(model, ids, decoder_ids, weights["soft_prompt"])[-1]
    torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("reads", ["start", "copy"])
@pytest.mark.parametrize("family", TESTED)
def test_a_decoder_prefix_at_positions_equals_the_stock_cache(family: str, reads: str) -> None:
    """With `decoder.position_offset` its keys stand before the first token, as in transformers' cache and PEFT."""
    bone = tiny(family)
    mine = prefix(bone, ("decoder",), VIRTUAL, 1)
    placed, free = reading(bone, reads, offset=VIRTUAL), reading(bone, reads)
    rows = bone.row_encoder(placed).encode([OTHER, TEXT, TEXT])
    prompts = [bone.bind(own, tensors(bone) | mine) for own in (free, placed, free)]
    got = bone.features(rows, prompts)
    ids, decoder_ids = _ids(family, TEXT, reads)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for layer, (key, value) in enumerate(
        zip(mine["prefix.decoder.key"], mine["prefix.decoder.value"], strict=True)
    ):
        cache.self_attention_cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], layer)
    with torch.no_grad():
        want = stock(family)(
            input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([decoder_ids]), past_key_values=cache,
            output_hidden_states=True,
        ).decoder_hidden_states[-1][0, -1]  # fmt: skip
    torch.testing.assert_close(got[1], want, **EXACT)
    assert (got[1] - got[2]).abs().max() > 0.05, "positions must matter"


@pytest.mark.parametrize(("reads", "read"), [("start", 1), ("mask", 2)])
def test_a_decoder_that_begins_late_needs_room_for_its_own_tokens_only(reads: str, read: int) -> None:
    bone = tiny("bart")
    own = reading(bone, reads, offset=bone.max_positions - read)
    (row,) = bone.row_encoder(own).encode(["the " * 200])
    assert len(row) == bone.max_positions
    bone.features([row], [bone.bind(own, tensors(bone) | prefix(bone, ("decoder",), VIRTUAL, 1))])
    with pytest.raises(IncompatiblePrompt, match=f"must be at most {bone.max_positions - read}"):
        bone.row_encoder(reading(bone, reads, offset=bone.max_positions - read + 1))
    # One that reads the row too has as many places fewer for it.
    (row,) = bone.row_encoder(reading(bone, "copy", offset=10)).encode(["the " * 200])
    assert len(row) == bone.max_positions - 10


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("family", "kind"), [("t5", "soft"), ("bart", "soft"), ("bart-even", "prefix")])
def test_sequence_to_sequence_adapters_equal_peft(family: str, kind: str) -> None:
    bone, words = tiny(family), (("bad", "terrible"), ("great",))
    base: Any = hf.AutoModelForSeq2SeqLM.from_pretrained(checkpoint(family))
    made = peft.PromptTuningConfig if kind == "soft" else peft.PrefixTuningConfig
    wrapped = peft.get_peft_model(base, made(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=VIRTUAL)).eval()
    learned = wrapped.prompt_encoder["default"].embedding.weight
    torch.nn.init.normal_(learned, generator=torch.Generator().manual_seed(3))
    fields: dict[str, Any] = {"template": "{text} {mask}", "pooling": "mask"}
    if kind == "soft":  # twice as many rows as are used
        weights = {"soft_prompt": learned.detach()[:VIRTUAL]}
        own = reading(bone, "start", soft=VIRTUAL, **fields | {"template": f"{{soft:{VIRTUAL}}}{{text}} {{mask}}"},
                      head={"type": "verbalizer", "words": words})  # fmt: skip
    else:  # of its 2L slots of keys or values decoder layer i gets 2i, counted modulo L, as both
        layers, heads, width = (
            base.config.decoder_layers,
            bone.shape.decoder.kv_heads,
            bone.shape.decoder.head_dim,
        )
        slots = learned.detach().view(VIRTUAL, -1, heads, width).transpose(0, 1)
        weights = _as_peft_splits(slots, layers)
        own = reading(bone, "start", offset=VIRTUAL, **fields, head={"type": "verbalizer", "words": words})
    got = bone.forward(bone.row_encoder(own).encode([OTHER, TEXT]), [bone.bind(own, weights)] * 2)
    before = "▁" if family in T5S else "Ġ"
    ids = [tokenizer(family).convert_tokens_to_ids([before + word for word in group]) for group in words]
    for text, logits in zip((OTHER, TEXT), got, strict=True):
        given = tokenizer(family)(text, return_tensors="pt", return_token_type_ids=False)
        start = torch.tensor([[stock(family).config.decoder_start_token_id]])
        with torch.no_grad():
            scores = wrapped(**given, decoder_input_ids=start).logits[0, -1]
        torch.testing.assert_close(logits, torch.stack([scores[group].mean() for group in ids]), **EXACT)


def _as_peft_splits(slots: torch.Tensor, layers: int) -> dict[str, torch.Tensor]:
    doubled = torch.cat([slots, slots])  # [4L, P, heads, width], in parts of four for each layer
    parts = doubled.split(4)
    return {
        "prefix.decoder.key": torch.stack([parts[layer][0] for layer in range(layers)]),
        "prefix.decoder.value": torch.stack([parts[layer][1] for layer in range(layers)]),
    }


@pytest.mark.parametrize("family", TESTED)
def test_key_values_are_those_of_the_stock_cache(family: str) -> None:
    """A text as a prefix: what the decoder's two attentions have of it is what transformers keeps of it."""
    bone, model = tiny(family), stock(family)
    ids = tokenizer(family)(TEXT)["input_ids"]
    with torch.no_grad():
        kept = model(
            torch.tensor([ids]), decoder_input_ids=torch.tensor([ids]), use_cache=True
        ).past_key_values
    for stack, cache in (("decoder", kept.self_attention_cache), ("cross", kept.cross_attention_cache)):
        keys, values = bone.key_values(ids, stack)
        for layer in range(bone.shape.decoder.layers):
            torch.testing.assert_close(keys[layer], cache.layers[layer].keys[0].transpose(0, 1), **EXACT)
            torch.testing.assert_close(values[layer], cache.layers[layer].values[0].transpose(0, 1), **EXACT)
    # The encoder's are those which, as a prefix of a row without positions, are seen by nobody else's row.
    assert bone.key_values(ids)[0].shape == (
        bone.shape.layers,
        len(ids),
        bone.shape.kv_heads,
        bone.shape.head_dim,
    )


@pytest.mark.parametrize("family", TESTED)
def test_soft_prompts_start_at_the_scale_of_embedded_words(family: str) -> None:
    """BART may multiply its embeddings: what stands among them must be multiplied as well."""
    ids = tokenizer(family)(TEXT)["input_ids"]
    with torch.no_grad():
        want = stock(family).get_encoder().embed_tokens(torch.tensor(ids))
    assert torch.equal(tiny(family).token_embedding(ids), want)


def test_t5_never_makes_a_bias_of_the_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    bone = tiny("t5")
    own = reading(bone, "copy")
    prompt = bone.bind(own, tensors(bone) | prefix(bone, STACKS, 3, 2))
    rows = bone.row_encoder(own).encode([TEXT, OTHER] * 8)
    whole = bone.features(rows, [prompt] * len(rows))
    made: list[int] = []
    real = backbone.relative.RowBias._part

    def watched(self: Any, *given: Any) -> Any:
        part = real(self, *given)
        made.append(part[2].numel())
        return part

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the stock model made its own bias")

    monkeypatch.setattr("transformers.models.t5.modeling_t5.T5Attention.compute_bias", never)
    monkeypatch.setattr(backbone.relative.RowBias, "_part", watched)
    monkeypatch.setattr(backbone.relative, "_MOST", 2000)
    torch.testing.assert_close(bone.features(rows, [prompt] * len(rows)), whole, **EXACT)
    assert len(made) > 10
    assert max(made) <= 2000
