"""Encoders that attend in their own way: DeBERTa-v2 in all its variants, MPNet, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from backbone import Backbone, UnsupportedBackbone, load_backbone
from backbone.family import refuse_unfit
from backbone.graph import NotRecordable
from backbone.selfcheck import samples
from prompt_store import IncompatiblePrompt, Prompt
from tests.backbone.families import (
    HEADS,
    HIDDEN,
    LAYERS,
    PADDED,
    POSITIONS,
    byte_level,
    checkpoint,
    tiny,
    wordpiece,
)
from tests.backbone.law_tasks import MAXIMAL, TEXTS
from tests.backbone.prompts import manifest, tensors
from tests.backbone.reference import first_position, stock

SIZE: dict[str, Any] = {
    "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "intermediate_size": 40,
    "max_position_embeddings": POSITIONS, "initializer_range": 0.25,
}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "position to content": {
        "relative_attention": True,
        "pos_att_type": ["p2c"],
        "position_biased_input": False,
    },
    "no kind of relative position": {"relative_attention": True, "pos_att_type": None},
    "absolute positions only": {},
    "no positions": {"position_biased_input": False},
    "short relative span": {**RELATIVE, "max_relative_positions": 5},
    "buckets and absolute positions": {**RELATIVE, "position_buckets": 6, "share_att_key": True},
    "narrow embedding": {**RELATIVE, "embedding_size": 16},
    "segments": {**RELATIVE, "type_vocab_size": 2},
}


def saved(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(folder: str, tmp_path: Path, **changes: Any) -> Backbone:
    return load_backbone(
        folder, device="cpu", dtype="float32", cache_dir=tmp_path, **{"kernels": "off", **changes}
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_deberta_scores_a_mix_as_stock_rows(variant: str, tmp_path: Path) -> None:
    """Soft prompts before some texts; the reference runs each row alone, from embeddings laid out by hand."""
    torch.manual_seed(1)
    words = wordpiece()
    config = hf.DebertaV2Config(vocab_size=len(words), pad_token_id=0, **SIZE, **VARIANTS[variant])
    model = hf.DebertaV2Model(config).eval()
    bone = loaded(saved(tmp_path / "model", model, words), tmp_path)
    kinds = []
    for soft in (0, 3):
        own = manifest(bone, soft=soft, pooling="last")
        weights = tensors(bone, soft=soft)
        kinds.append((own, bone.bind(own, weights), weights.get("soft_prompt")))
    texts = [*TEXTS, MAXIMAL]
    rows = [bone.row_encoder(own).encode([text])[0] for text in texts for own, _, _ in kinds]
    got = bone.features(rows, [prompt for _ in texts for _, prompt, _ in kinds])
    for at, row in enumerate(rows):
        soft_prompt = kinds[at % 2][2]
        ids = torch.tensor([token for token in row.token_ids if token >= 0])
        with torch.no_grad():
            embedded = model.get_input_embeddings()(ids)
            if soft_prompt is not None:
                embedded = torch.cat([soft_prompt, embedded])
            want = model(inputs_embeds=embedded[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(got[at], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["deberta-v2-conv", "mpnet"])
def test_positions_are_the_prompts(family: str) -> None:
    """Shifted by `position_offset`, as an import may ask; these two have absolute positions."""
    bone, model, texts = tiny(family), stock(family), list(TEXTS[1:6])
    own = manifest(bone, pooling="last", position_offset=7)
    rows = bone.row_encoder(own).encode(texts)
    got = bone.features(rows, [bone.bind(own, tensors(bone))] * len(rows))
    for row, features in zip(rows, got, strict=True):
        positions = torch.arange(len(row))[None] + first_position(family) + 7
        with torch.no_grad():
            want = model(input_ids=torch.tensor([row.token_ids]), position_ids=positions)
        torch.testing.assert_close(features, want.last_hidden_state[0, -1], atol=1e-5, rtol=1e-4)


def test_what_they_answer_is_not_what_a_batch_without_a_mask_gives() -> None:
    """Parity would hold for any mask if rows of a group had one length: here they have not."""
    bone = tiny("deberta-v2", attention="eager")
    own = manifest(bone)
    rows = bone.row_encoder(own).encode(["a", "a b", "a b c"])
    _, packed = bone._encoder(rows, [bone.bind(own, tensors(bone))] * 3)
    (group,) = packed.groups
    assert group.real().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("family", PADDED)
def test_a_prefix_is_refused_in_one_sentence(family: str) -> None:
    bone, other = tiny(family), tiny("bert")
    shape = bone.shape
    own = manifest(bone)
    prefixed = tensors(other, prefix=2)
    said = rf"^{family} takes no prefix, as [a-z0-9-]+ attends in its own way: train a soft prompt"
    with pytest.raises(IncompatiblePrompt, match=said):
        bone.bind(own, prefixed)
    size = (shape.layers, 2, shape.kv_heads, shape.head_dim)
    arrays = {name: np.zeros(size, np.float32) for name in ("prefix.encoder.key", "prefix.encoder.value")}
    arrays |= {name: t.numpy() for name, t in tensors(bone).items()}
    with pytest.raises(IncompatiblePrompt, match=said):
        bone.load_prompt(Prompt(own, arrays))
    with pytest.raises(UnsupportedBackbone, match="takes no prefix"):
        bone.key_values([5, 6])


@pytest.mark.parametrize("family", PADDED)
def test_kernels_are_done_without_in_one_line(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="backbone"):
        bone = loaded(str(checkpoint(family)), tmp_path, kernels="auto")
    assert bone.kernels == ()
    (line,) = [r for r in caplog.records if "attends in its own way" in r.getMessage()]
    assert line.levelno == logging.INFO
    with pytest.raises(NotRecordable, match="padded"):
        bone.record(samples(bone, thorough=True))


def test_an_untested_encoder_of_this_kind_is_tried_and_served(tmp_path: Path) -> None:
    words = wordpiece()
    config = hf.MegatronBertConfig(vocab_size=len(words), **SIZE)
    bone = loaded(saved(tmp_path / "model", hf.MegatronBertModel(config), words), tmp_path)
    assert not bone.takes_prefixes
    own = manifest(bone, soft=2)
    rows = bone.row_encoder(own).encode(["good", "bad film"])
    assert len(bone.forward(rows, [bone.bind(own, tensors(bone, soft=2))] * 2)) == 2


def test_an_encoder_that_looks_at_padded_places_is_refused(tmp_path: Path) -> None:
    """ConvBERT's convolutions know no mask."""
    words = wordpiece()
    config = hf.ConvBertConfig(vocab_size=len(words), embedding_size=HIDDEN, **SIZE)
    with pytest.raises(UnsupportedBackbone, match="influence each other"):
        loaded(saved(tmp_path / "model", hf.ConvBertModel(config), words), tmp_path)


def test_attention_that_depends_on_a_rows_length_is_refused(tmp_path: Path) -> None:
    """BigBird's first short row makes it attend to everything, for good: a check with short rows cannot tell."""
    words = wordpiece()
    for kind in ("block_sparse", "original_full"):
        config = hf.BigBirdConfig(vocab_size=len(words), attention_type=kind, **SIZE)
        folder = saved(tmp_path / kind, hf.BigBirdModel(config), words)
        if kind == "original_full":
            assert not loaded(folder, tmp_path).takes_prefixes
            continue
        with pytest.raises(UnsupportedBackbone, match=r"big_bird attends .* depend on its neighbours"):
            loaded(folder, tmp_path)


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("IBert", {"quant_mode": False}, "AttributeError: 'QuantEmbedding'"),
        (
            "SqueezeBert",
            {"embedding_size": HIDDEN} | dict.fromkeys(
                ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups"), 1
            ),
            "TypeError: 'NoneType'",
        ),
    ],
)  # fmt: skip
def test_a_model_that_is_built_otherwise_is_refused_in_one_sentence(
    family: str, more: dict[str, Any], why: str, tmp_path: Path
) -> None:
    words = wordpiece()
    config = getattr(hf, f"{family}Config")(vocab_size=len(words), **SIZE, **more)
    folder = saved(tmp_path / "model", getattr(hf, f"{family}Model")(config), words)
    with pytest.raises(UnsupportedBackbone, match=rf"^model cannot be served: its family is built .*{why}"):
        loaded(folder, tmp_path)


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    words = wordpiece()
    config = hf.FNetConfig(
        vocab_size=len(words), hidden_size=HIDDEN, num_hidden_layers=2, intermediate_size=40
    )
    with pytest.raises(UnsupportedBackbone, match="fnet has no num_attention_heads"):
        loaded(saved(tmp_path / "model", hf.FNetModel(config), words), tmp_path)


def test_a_decoder_that_attends_in_its_own_way_is_refused(tmp_path: Path) -> None:
    letters = byte_level(around=False)
    config = hf.GPTNeoConfig(
        vocab_size=len(letters), hidden_size=HIDDEN, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
    )  # fmt: skip
    with pytest.raises(UnsupportedBackbone, match=r"gpt_neo is a decoder that attends in its own way"):
        loaded(saved(tmp_path / "model", hf.GPTNeoForCausalLM(config), letters), tmp_path)


def test_a_model_without_positions_is_refused(tmp_path: Path) -> None:
    letters = byte_level(around=False)
    config = hf.BloomConfig(vocab_size=len(letters), hidden_size=HIDDEN, n_layer=2, n_head=2)
    folder = saved(tmp_path / "model", hf.BloomForCausalLM(config), letters)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "bloom"
    with pytest.raises(UnsupportedBackbone, match="bloom takes no position ids"):
        loaded(folder, tmp_path)


def test_a_model_that_takes_no_mask_is_refused() -> None:
    class Base(torch.nn.Module):
        config = hf.BertConfig()

        def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> None: ...

    model = SimpleNamespace(config=Base.config, base_model=Base(), _can_set_attn_implementation=lambda: False)
    with pytest.raises(UnsupportedBackbone, match="bert attends in its own way and takes no attention_mask"):
        refuse_unfit(model)
