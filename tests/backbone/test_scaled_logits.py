"""Verbalizers of families that do more behind the output embedding: scaled and capped logits, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from backbone import Backbone, heads, load_backbone
from prompt_store import IncompatiblePrompt, Manifest
from tests.backbone.families import _GQA, byte_level
from tests.backbone.prompts import manifest

FAMILIES: dict[str, dict[str, Any]] = {
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0},
    "Cohere": {"logit_scale": 1 / 16},
    "HyperCLOVAX": {"logits_scaling": 0.2},
    # Its attention's own cap is refused: the packed attention has none.
    "Gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None},
}


def made(family: str, folder: Path) -> tuple[Any, Backbone]:
    letters = byte_level(around=False)
    special = {"bos_token_id": letters.bos_token_id, "eos_token_id": letters.eos_token_id}
    config = getattr(hf, f"{family}Config")(
        vocab_size=len(letters), pad_token_id=letters.pad_token_id, **_GQA, **special, **FAMILIES[family]
    )
    torch.manual_seed(1)
    model = getattr(hf, f"{family}ForCausalLM")(config).eval()
    model.save_pretrained(folder / "model")
    letters.save_pretrained(folder / "model")
    bone = load_backbone(
        str(folder / "model"), device="cpu", dtype="float32", cache_dir=folder, kernels="off"
    )
    return model, bone


def cloze(bone: Backbone) -> Manifest:
    words = {"type": "verbalizer", "words": (("good",), ("bad", "dull")), "aggregate": "mean"}
    return manifest(bone, labels=2, template="{text} was {mask}", pooling="mask", head=words)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_verbalizer_scores_as_the_stock_model(family: str, tmp_path: Path) -> None:
    model, bone = made(family, tmp_path)
    own = cloze(bone)
    prompt = bone.bind(own, {})
    rows = bone.row_encoder(own).encode(["the film", "an order that came late"])
    got = bone.forward(rows, [prompt] * 2)
    assert isinstance(prompt.head, heads.VerbalizerWords)
    for row, scores in zip(rows, got, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.token_ids])).logits[0, -1]
        good, bad, dull = logits[prompt.head.word_ids]
        torch.testing.assert_close(scores, torch.stack([good, (bad + dull) / 2]), atol=1e-5, rtol=1e-4)


def test_a_head_that_scores_otherwise_is_refused_and_all_else_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a family with a scale that is not known here."""
    monkeypatch.setattr(heads, "_logit_scale", lambda config: 1.0)
    with caplog.at_level(logging.WARNING, logger="backbone"):
        _, bone = made("Granite", tmp_path)
    assert [r.getMessage() for r in caplog.records if "verbalizers are refused" in r.getMessage()]
    assert not bone.has_lm_head
    with pytest.raises(IncompatiblePrompt, match=r"language-model head, .* or none that passed the check"):
        bone.bind(cloze(bone), {})
    own = manifest(bone)
    rows = bone.row_encoder(own).encode(["good"])
    weights = {"head.0.weight": torch.zeros(2, 24), "head.0.bias": torch.zeros(2)}
    assert len(bone.forward(rows, [bone.bind(own, weights)])) == 1
