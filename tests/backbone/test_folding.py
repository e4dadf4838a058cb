"""Soft prompts kept as keys and values: the same scores with fewer tokens, where that is exact."""

from __future__ import annotations

import pytest
import torch

from backbone.folding import fold
from prompt_store import Prompt
from tests.backbone.families import BOTH, CAUSAL, tiny
from tests.backbone.prompts import manifest, tensors

TEXTS = (
    "the film was not very good",
    "who",
    "a great warm book",
    "where is the order ? thanks , please never late",
)
EXACT = {"atol": 1e-5, "rtol": 1e-4}
FOLDING = [name for name in CAUSAL if name != "qwen3"]  # the tiny qwen3 has a window


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("prefix", [0, 4])
@pytest.mark.parametrize("pooling", ["last", "mean", -2, 7, 2])
@pytest.mark.parametrize("family", FOLDING)
def test_it_scores_as_the_whole_row(family: str, pooling: str | int, prefix: int, attention: str) -> None:
    bone = tiny(family, attention=attention)
    own = manifest(bone, soft=5, template="{soft:5} {text} {soft:2}", pooling=pooling)
    arrays = {name: t.numpy() for name, t in tensors(bone, soft=7, prefix=prefix).items()}
    loaded = bone.load_prompt(Prompt(own, arrays))
    assert loaded.folded is not None
    held = [
        *loaded.prefix_keys,
        *loaded.prefix_values,
        *loaded.folded.prefix_keys,
        *loaded.folded.prefix_values,
    ]
    head = 2 * (bone.shape.hidden_size + 1) * 4
    assert loaded.nbytes == sum(t.nbytes for t in held) + loaded.soft_prompt.nbytes + head
    rows = bone.row_encoder(own).encode(TEXTS)
    with torch.no_grad():
        whole = bone.forward(rows, [loaded] * len(rows))
        shorter, prompts = fold(rows, [loaded] * len(rows))
        folded = bone.forward(shorter, prompts)
    for one, other in zip(whole, folded, strict=True):
        torch.testing.assert_close(other, one, **EXACT)
    fewer = [len(row) - len(short) for row, short in zip(rows, shorter, strict=True)]
    # Place 2 is a virtual token: what is pooled must stay in the row.
    assert fewer == [0 if pooling == 2 else 5] * len(rows)
    wanted = [torch.softmax(logits, dim=0).tolist() for logits in whole]
    for scores, want in zip(bone.score(rows, [loaded] * len(rows)), wanted, strict=True):
        assert scores == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    "template", ["{soft:3} {soft:2} {text}", "{soft:5} {text} {soft:2}", "{soft:5}{text}"]
)
@pytest.mark.parametrize("family", FOLDING)
def test_blank_text_and_slots_side_by_side(family: str, template: str) -> None:
    bone = tiny(family)
    soft = 7 if template.endswith("{soft:2}") else 5
    own = manifest(bone, soft=5, template=template)
    loaded = bone.load_prompt(Prompt(own, {n: t.numpy() for n, t in tensors(bone, soft=soft).items()}))
    assert loaded.folded_tokens == 5
    rows = bone.row_encoder(own).encode(["", "who", " ".join(["film"] * 200)])
    with torch.no_grad():
        whole = [torch.softmax(x, dim=0).tolist() for x in bone.forward(rows, [loaded] * 3)]
    for scores, want in zip(bone.score(rows, [loaded] * 3), whole, strict=True):
        assert scores == pytest.approx(want, abs=1e-5)


def test_a_window_forbids_it() -> None:
    bone = tiny("qwen3")
    own = manifest(bone, soft=5)
    arrays = {name: t.numpy() for name, t in tensors(bone, soft=5).items()}
    assert bone.load_prompt(Prompt(own, arrays)).folded is None


def test_an_encoder_forbids_it() -> None:
    bone = tiny("bert")
    own = manifest(bone, soft=5)
    arrays = {name: t.numpy() for name, t in tensors(bone, soft=5).items()}
    assert bone.load_prompt(Prompt(own, arrays)).folded is None


def test_folded_and_whole_rows_share_a_batch() -> None:
    bone = tiny("llama")
    soft, bare = manifest(bone, soft=3), manifest(bone)
    loaded = bone.load_prompt(Prompt(soft, {n: t.numpy() for n, t in tensors(bone, soft=3).items()}))
    plain = bone.load_prompt(Prompt(bare, {n: t.numpy() for n, t in tensors(bone, prefix=2).items()}))
    rows = [*bone.row_encoder(soft).encode(TEXTS), *bone.row_encoder(bare).encode(TEXTS)]
    prompts = [loaded] * len(TEXTS) + [plain] * len(TEXTS)
    together = bone.score(rows, prompts)
    for row, prompt, scores in zip(rows, prompts, together, strict=True):
        assert bone.score([row], [prompt])[0] == pytest.approx(scores, abs=1e-5)
