"""The law of training: a prompt's gradients do not depend on who else is in the batch.

Of many prompts in one backward some are not finite; the gradients of all others are what they are beside healthy ones,
to the bit. Widths that are no multiple of 32 are those that AMX reads beyond (docs/decisions/0008).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from backbone import Backbone, Row, load_backbone
from tests.backbone.families import BOTH, WAYS, byte_level, run_cache, tiny, wordpiece
from tests.backbone.law_tasks import TEXTS
from tests.backbone.prompts import manifest, tensors

POISON = (float("nan"), float("inf"))
# Each second is poisoned, so that every healthy one has such neighbours. What is read beyond depends on the length of
# the line: a long one of rows of all lengths, and shorter ones.
LINES = [[*TEXTS[1:], *TEXTS[3:], TEXTS[5]], TEXTS[1:6], TEXTS[2:7]]


def _gradients(
    bone: Backbone, texts: Sequence[str], *, prefixes: bool, poison: float | None
) -> list[list[Tensor]]:
    """Gradients of every prompt's tensors, row `at` being of prompt `at`; every second prompt is poisoned."""
    own = manifest(bone, soft=0 if prefixes else 3)
    leaves: list[dict[str, Tensor]] = []
    rows: list[Row] = []
    for at, text in enumerate(texts):
        made = tensors(bone, soft=0 if prefixes else 3, prefix=4 if prefixes else 0, seed=at)
        for name, tensor in made.items():
            if poison is not None and at % 2 and not name.startswith("head."):
                tensor.fill_(poison)
        leaves.append({name: tensor.requires_grad_() for name, tensor in made.items()})
        rows.append(bone.row_encoder(own).encode([text])[0])
    scores = bone.forward(rows, [bone.bind(own, leaf) for leaf in leaves])
    total = torch.stack([own_scores @ torch.tensor([1.0, -0.5]) for own_scores in scores]).sum()
    found = torch.autograd.grad(total, [leaf for own_leaves in leaves for leaf in own_leaves.values()])
    given = iter(found)
    return [[next(given) for _ in own_leaves] for own_leaves in leaves]


def _check(bone: Backbone, *, prefixes: bool) -> None:
    for texts in LINES:
        healthy = _gradients(bone, texts, prefixes=prefixes, poison=None)
        assert all(gradient.isfinite().all() and gradient.any() for own in healthy for gradient in own)
        for poison in POISON:
            mixed = _gradients(bone, texts, prefixes=prefixes, poison=poison)
            for at, (own, beside) in enumerate(zip(healthy, mixed, strict=True)):
                if at % 2:
                    assert not all(gradient.isfinite().all() for gradient in beside), (
                        "what is broken must show"
                    )
                else:
                    assert all(torch.equal(a, b) for a, b in zip(own, beside, strict=True)), f"row {at}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "attention"), WAYS)
def test_every_family(family: str, attention: str, dtype: str) -> None:
    bone = tiny(family, dtype, attention)
    _check(bone, prefixes=False)
    if bone.takes_prefixes:
        _check(bone, prefixes=True)


@functools.cache
def _wide(kind: str, attention: str, folder: Path) -> Backbone:
    """Wider than AMX's tile, and no multiple of it: TinyBERT's widths, and a GPT-2 with its turned weights."""
    torch.manual_seed(0)
    config: dict[str, Any]
    if kind == "bert":
        tokenizer = wordpiece()
        config = {
            "hidden_size": 312,
            "num_attention_heads": 12,
            "num_hidden_layers": 2,
            "intermediate_size": 1200,
        }
        model: Any = hf.BertModel(hf.BertConfig(vocab_size=len(tokenizer), initializer_range=0.1, **config))
    else:
        tokenizer = byte_level(around=False)
        config = {"n_embd": 100, "n_head": 5, "n_layer": 2, "n_inner": 170}
        model = hf.GPT2Model(hf.GPT2Config(vocab_size=len(tokenizer), initializer_range=0.1, **config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kernels: Any = {"compiled": "required", "eager": "off"}[attention]
    return load_backbone(str(folder), device="cpu", dtype="bfloat16", cache_dir=run_cache(), kernels=kernels)


@pytest.mark.parametrize("prefixes", [False, True], ids=["soft", "prefix"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("attention", BOTH)
def test_odd_widths_over_one_tile(
    kind: str, attention: str, prefixes: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"wide-{kind}"
    _check(_wide(kind, attention, folder), prefixes=prefixes)
