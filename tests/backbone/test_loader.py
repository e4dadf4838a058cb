"""Loading: the built-in model, folders, devices and dtypes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

from backbone import BackboneError, UnsupportedBackbone, load_backbone, loader
from backbone.loader import choose_device, choose_dtype
from tests.backbone.families import HIDDEN, LAYERS, byte_level, checkpoint, run_cache, tiny, wordpiece
from tests.backbone.prompts import manifest, tensors


def test_the_built_in_backbone() -> None:
    bone = load_backbone("minilm", device="cpu", dtype="float32")
    assert (bone.shape.hidden_size, bone.shape.layers, bone.shape.kv_heads, bone.shape.head_dim) == (
        384,
        6,
        12,
        32,
    )
    assert bone.fingerprint == load_backbone("minilm", device="cpu", dtype="bfloat16").fingerprint
    assert not bone.has_lm_head
    vectors = bone.encode_labels(["a film review", "a movie critique", "the price of steel"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert not any(p.requires_grad for p in bone._base.parameters())


def test_another_file_in_the_place_of_the_built_in_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "_BUILT_IN_WEIGHTS", "0" * 64)
    with pytest.raises(BackboneError, match="not the published model"):
        load_backbone("minilm", device="cpu")


def test_auto_dtype_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for amx, avx, expected in (
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert choose_dtype("auto", cpu) is expected
    assert choose_dtype("auto", torch.device("cuda")) is torch.bfloat16


def test_unknown_names_are_refused_in_one_line() -> None:
    with pytest.raises(BackboneError, match="unknown dtype"):
        choose_dtype("int3", torch.device("cpu"))
    with pytest.raises(BackboneError, match="unknown device"):
        choose_device("abacus")
    with pytest.raises(BackboneError, match="no folder"):
        load_backbone("./nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(BackboneError, match="no CUDA device"):
        choose_device("cuda")


def _save(model: hf.PreTrainedModel, tokenizer: hf.PreTrainedTokenizerFast, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_families_that_cannot_run_packed_are_refused(tmp_path: Path) -> None:
    words = wordpiece()
    pegasus = hf.PegasusModel(hf.PegasusConfig(
        vocab_size=len(words), d_model=HIDDEN, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
    ))  # fmt: skip
    with pytest.raises(UnsupportedBackbone, match="encoder-decoder that is not known"):
        load_backbone(_save(pegasus, words, tmp_path / "pegasus"), device="cpu", dtype="float32")


def test_an_albert_that_attends_twice_in_a_layer_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("albert"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "inner_group_num": 2}))
    model = hf.AutoModelForMaskedLM.from_config(hf.AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    with pytest.raises(UnsupportedBackbone, match="inner_group_num = 2 attends 2 times in each"):
        load_backbone(str(folder), device="cpu", dtype="float32", cache_dir=run_cache())


def test_an_untested_family_that_works_is_served(tmp_path: Path) -> None:
    """Mistral is on no list of ours: the check at load finds that its rows keep apart."""
    letters = byte_level(around=False)
    config = hf.MistralConfig(
        vocab_size=len(letters), hidden_size=HIDDEN, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=LAYERS, intermediate_size=32, max_position_embeddings=64, initializer_range=0.25,
    )  # fmt: skip
    folder = _save(hf.MistralForCausalLM(config), letters, tmp_path / "mistral")
    bone = load_backbone(folder, device="cpu", dtype="float32")
    own = manifest(bone)
    assert bone.forward(bone.row_encoder(own).encode(["good"]), [bone.bind(own, tensors(bone))])[0].shape == (
        2,
    )


def test_where_there_are_no_weights_a_pickle_is_explained(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("bert"), tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        BackboneError, match=r"model\.safetensors is missing .* pytorch_model\.bin, a pickle, .*"
    ):
        load_backbone(str(folder), device="cpu", dtype="float32", cache_dir=run_cache())
    (folder / "tokenizer.json").unlink()
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(BackboneError, match=r"tokenizer\.json is missing") as caught:
        load_backbone(str(folder), device="cpu", dtype="float32", cache_dir=run_cache())
    assert "pickle" not in str(caught.value)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("bert"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS + 1}))
    with pytest.raises(BackboneError, match="lacks weights"):
        load_backbone(str(folder), device="cpu", dtype="float32", cache_dir=run_cache())


def test_a_folder_is_named_by_its_last_part_wherever_it_lies(tmp_path: Path) -> None:
    """The name stands in prompt files, whose digest must not depend on the machine that trained them."""
    shutil.copytree(checkpoint("bert"), tmp_path / "elsewhere" / "bert")
    there = load_backbone(
        str(tmp_path / "elsewhere" / "bert"), device="cpu", dtype="float32", cache_dir=run_cache()
    )
    here = tiny("bert")
    assert there.shape == here.shape
    assert there.name == "bert"
