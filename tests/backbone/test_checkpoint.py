"""Checkpoints whose files would make another model than their fingerprint and config.json say are refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from backbone import Backbone, BackboneError, UnsupportedBackbone, load_backbone
from backbone import checkpoint as checkpoint_module
from tests.backbone.families import HIDDEN, LAYERS, byte_level, checkpoint, run_cache
from tests.backbone.prompts import manifest, tensors
from tests.backbone.seq2seq import checkpoint as two_stacks


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str | Path], Path]:
    """A copy of a family's tiny checkpoint, or of one in a folder."""

    def copy(of: str | Path) -> Path:
        return Path(
            shutil.copytree(
                of if isinstance(of, Path) else checkpoint(of), tmp_path / "model", dirs_exist_ok=True
            )
        )

    return copy


def configure(folder: Path, **keys: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


def load(folder: Path) -> Backbone:
    return load_backbone(str(folder), device="cpu", dtype="float32", cache_dir=run_cache(), kernels="off")


def add_weight(folder: Path, name: str, *shape: int) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), name: torch.ones(shape)}, file, {"format": "pt"})


def test_an_adapter_beside_a_model_is_refused(folder: Any) -> None:
    """transformers would load its base model in the place of this one."""
    one = folder("bert")
    (one / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"})
    )
    with pytest.raises(UnsupportedBackbone, match="where PEFT is installed"):
        load(one)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_are_refused_in_one_sentence(method: str, folder: Any) -> None:
    one = configure(folder("llama"), quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(BackboneError, match=rf"{method}|cannot be loaded") as caught:
        load(one)
    assert "\n" not in str(caught.value)


def test_relative_positions_that_transformers_dropped_are_refused(folder: Any) -> None:
    one = folder("bert")
    add_weight(one, "bert.encoder.layer.0.attention.self.distance_embedding.weight", 191, 6)
    with pytest.raises(UnsupportedBackbone, match=r"does not use: .*distance_embedding\.weight \(1 in all\)"):
        load(one)
    with pytest.raises(UnsupportedBackbone, match="position_embedding_type = 'relative_key'"):
        load(configure(one, position_embedding_type="relative_key"))


def test_an_adapter_that_was_not_merged_is_refused(folder: Any) -> None:
    one = folder("bert")
    add_weight(one, "bert.encoder.layer.0.attention.self.query.lora_A.weight", 4, HIDDEN)
    with pytest.raises(UnsupportedBackbone, match="merge adapters into the model first"):
        load(one)


def test_layers_that_are_left_out_are_told(folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "backbone"):
        load(folder("bert"))
        assert not caplog.records
        load(configure(folder("bert"), num_hidden_layers=LAYERS - 1))
    (record,) = caplog.records
    assert "asks for fewer layers" in record.getMessage()
    assert f"layer.{LAYERS - 1}." in record.getMessage()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bert.encoder.layer.0.attention.self.query.extra", (4,)),
        ("encoder.layer.1.attention.self.spare", (2,)),
    ],
)
def test_weights_inside_layers_that_nothing_reads_are_told(
    name: str, shape: tuple[int, ...], folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one = folder("bert")
    add_weight(
        one, "cls.seq_relationship.weight", 2, HIDDEN
    )  # a head is nobody's loss, nor is what is computed
    add_weight(one, "bert.encoder.layer.0.rotary_emb.inv_freq", 3)
    with caplog.at_level(logging.WARNING, "backbone"):
        load(one)
        assert not caplog.records
        add_weight(one, name, *shape)
        load(one)
    assert "runs without 1 of its weights" in caplog.text


@pytest.mark.parametrize("name", ["minilm", "bert"])
def test_padding_and_truncation_in_a_tokenizers_file_are_nothing_to_tell(
    name: str, folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    where = name
    if name != "minilm":  # whose file pads to 128
        one = folder(name)
        whole = json.loads((one / "tokenizer.json").read_text())
        whole["padding"] = {
            "strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "[PAD]",
        }  # fmt: skip
        whole["truncation"] = {
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        (one / "tokenizer.json").write_text(json.dumps(whole))
        where = str(one)
    with caplog.at_level(logging.WARNING):
        load_backbone(where, device="cpu", dtype="float32", kernels="off")
    assert not caplog.records


def test_a_tokenizer_that_reads_otherwise_than_its_file_is_told(
    folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers' class for BERT reads all as lower case where nothing is said."""
    one = folder("bert")
    whole = json.loads((one / "tokenizer.json").read_text())
    whole["normalizer"] = {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": False,
    }  # fmt: skip
    whole["model"]["vocab"]["Ab"] = len(whole["model"]["vocab"])
    whole["added_tokens"] = [
        token for token in whole["added_tokens"] if token["id"] < whole["model"]["vocab"]["Ab"]
    ]
    (one / "tokenizer.json").write_text(json.dumps(whole))
    names = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    kept = {k: v for k, v in json.loads((one / "tokenizer_config.json").read_text()).items() if k in names}
    (one / "tokenizer_config.json").write_text(json.dumps({**kept, "tokenizer_class": "BertTokenizer"}))
    pretrained = hf.AutoTokenizer.from_pretrained(one)
    with caplog.at_level(logging.WARNING, "backbone"):
        checkpoint_module.tell_of_another_tokenizer(one, pretrained)
        assert "reads 'Ab" in caplog.text
        caplog.clear()
        pretrained.save_pretrained(one)
        checkpoint_module.tell_of_another_tokenizer(one, hf.AutoTokenizer.from_pretrained(one))
        assert not caplog.records


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_window_that_the_family_does_not_have_is_nothing(family: str, folder: Any) -> None:
    load(configure(folder(family), sliding_window=4096))


def test_weights_of_other_shapes_are_named(folder: Any) -> None:
    with pytest.raises(BackboneError, match=r"other shapes than its config\.json says: .*\[40.*not \[44"):
        load(configure(folder("bert"), intermediate_size=44))


@pytest.mark.parametrize(
    "keys",
    [{"hidden_size": "24"}, {"hidden_act": "nonsense"}, {"model_type": "nonsense"}, {"model_type": None}],
)
def test_what_no_configuration_may_say_is_one_line(keys: dict[str, object], folder: Any) -> None:
    with pytest.raises(BackboneError) as caught:
        load(configure(folder("bert"), **keys))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_made_is_one_line(folder: Any) -> None:
    one = folder("bert")
    (one / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    with pytest.raises(BackboneError) as caught:
        load(one)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_words_that_have_no_embedding_is_refused(tmp_path: Path) -> None:
    letters = byte_level(around=False)
    size = len(letters)
    config = hf.LlamaConfig(
        vocab_size=size, hidden_size=HIDDEN, num_attention_heads=4, num_hidden_layers=1, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    letters.add_special_tokens({"pad_token": "<padding>"})  # no row has it
    letters.save_pretrained(tmp_path)
    load(tmp_path)
    letters.add_tokens(["wonderful"])
    letters.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=rf"1 tokens that the model has no embedding for .*id {size + 1}"):
        load(tmp_path)


def test_what_no_row_can_be_run_on_is_refused_when_it_is_loaded(folder: Any) -> None:
    with pytest.raises(UnsupportedBackbone, match="hands its attention is_causal"):
        load(configure(folder("qwen3"), is_causal=False))


def test_a_window_that_only_the_mask_knows_is_refused(tmp_path: Path) -> None:
    letters = byte_level(around=False)
    config = hf.Qwen2MoeConfig(
        vocab_size=len(letters), hidden_size=HIDDEN, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, intermediate_size=40, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        num_experts=4, num_experts_per_tok=2, max_position_embeddings=64, use_sliding_window=True, sliding_window=6,
        max_window_layers=2,
    )  # fmt: skip
    hf.Qwen2MoeForCausalLM(config).save_pretrained(tmp_path)
    letters.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedBackbone, match="gives its window to the mask alone"):
        load(tmp_path)


def test_a_head_of_more_parts_than_are_known_is_done_without(tmp_path: Path) -> None:
    """ESM adds a bias that is no part of its last layer."""
    letters = byte_level(around=True)
    config = hf.EsmConfig(
        vocab_size=len(letters), hidden_size=HIDDEN, num_attention_heads=4, num_hidden_layers=2, intermediate_size=40,
        max_position_embeddings=98, pad_token_id=1, mask_token_id=4, position_embedding_type="absolute",
    )  # fmt: skip
    hf.EsmForMaskedLM(config).save_pretrained(tmp_path)
    letters.save_pretrained(tmp_path)
    assert not load(tmp_path).has_lm_head


def test_t5_under_its_first_name_is_the_same_model(folder: Any) -> None:
    known = load(folder(two_stacks("t5")))
    old = load(configure(folder(two_stacks("t5")), architectures=["T5WithLMHeadModel"]))
    assert old.has_lm_head
    assert old.fingerprint == known.fingerprint


def test_a_row_does_not_fail_by_its_neighbours_length(folder: Any) -> None:
    """Some models cut their line into chunks, and fail where that does not come out even."""
    bone = load(configure(folder("bert"), chunk_size_feed_forward=4))
    own = manifest(bone)
    rows = bone.row_encoder(own).encode(["the film", "the good film", "a"])
    prompt = bone.bind(own, tensors(bone))
    together = bone.features(rows, [prompt] * 3)
    alone = torch.cat([bone.features([row], [prompt]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
