"""A fingerprint changes with the architecture, the weights and the tokenizer, and with nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from backbone.errors import BackboneError
from backbone.fingerprint import fingerprint
from tests.backbone.families import checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("bert"), tmp_path / "model"))


def _edit(folder: Path, **keys: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}, indent=7, sort_keys=False))


def test_library_bookkeeping_does_not_matter(folder: Path) -> None:
    before = fingerprint(folder)
    _edit(
        folder,
        transformers_version="99.0",
        dtype="bfloat16",
        torch_dtype="float16",
        id2label={"0": "x"},
        use_cache=True,
    )
    assert fingerprint(folder) == before


@pytest.mark.parametrize(
    "key", [{"layer_norm_eps": 1e-3}, {"num_attention_heads": 2}, {"hidden_act": "relu"}, {"rope_theta": 7.0}]
)
def test_the_architecture_matters(folder: Path, key: dict[str, object]) -> None:
    before = fingerprint(folder)
    _edit(folder, **key)
    assert fingerprint(folder) != before


def test_one_weight_matters_and_the_files_do_not(folder: Path) -> None:
    before = fingerprint(folder)
    weights = load_file(folder / "model.safetensors")
    # The same tensors in two shards with other metadata: the same model.
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / file, metadata={"format": "pt", "by": file})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint(folder) == before  # the whole file is what is loaded
    (folder / "model.safetensors").unlink()
    assert fingerprint(folder) == before
    weights[names[0]].view(-1)[0] += 1e-3
    save_file({name: weights[name] for name in parts["a.safetensors"]}, folder / "a.safetensors")
    assert fingerprint(folder) != before


def test_the_tokenizer_matters(folder: Path) -> None:
    before = fingerprint(folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("film", "filn"))
    assert fingerprint(folder) != before


def test_cache_is_used_and_survives_damage(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "fingerprints.json"
    before = fingerprint(folder, cache=cache)
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: "remembered"}))
    assert fingerprint(folder, cache=cache) == "remembered"
    cache.write_text('{"torn')
    assert fingerprint(folder, cache=cache) == before
    _edit(folder, layer_norm_eps=0.5)
    assert fingerprint(folder, cache=cache) != before


@pytest.mark.parametrize("content", ["", '{"torn', "[1]"])
def test_a_torn_configuration_is_one_clear_error(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(BackboneError, match=r"config\.json"):
        fingerprint(folder)


def test_missing_and_torn_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(BackboneError, match="torn"):
        fingerprint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"model\.safetensors is missing"):
        fingerprint(folder)


def test_a_tokenizer_that_its_configuration_makes_another_has_another(folder: Path) -> None:
    """transformers rebuilds some from tokenizer_config.json: two such copies read the same text differently."""
    before, file = fingerprint(folder), folder / "tokenizer_config.json"
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["normalizer"] = {
        "type": "Sequence", "normalizers": [{"type": "BertNormalizer", "lowercase": True, "strip_accents": None}],
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    plain = json.loads(file.read_text())
    seen = [before]
    for said in ({}, {"do_lower_case": True}, {"do_lower_case": False}, {"strip_accents": True}):
        file.write_text(json.dumps({**plain, **said}))
        seen.append(fingerprint(folder))
    assert seen[1] == seen[2]  # they agree
    assert len(set(seen)) == 4
    file.write_text(json.dumps({**plain, "do_lower_case": None}))
    assert fingerprint(folder) == seen[1]  # nothing is said
