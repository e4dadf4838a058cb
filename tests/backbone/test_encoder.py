"""How many tokens a line has: few lengths in bfloat16 on CPUs, and nobody notices the filler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from backbone import Backbone
from backbone.encoder import spare
from backbone.rows import text_row
from tests.backbone.families import BOTH, tiny
from tests.backbone.law_tasks import tasks
from tests.backbone.prompts import manifest, tensors


@contextmanager
def lengths_of(bone: Backbone) -> Iterator[list[int]]:
    """The tokens of each line that the model is given."""
    seen: list[int] = []
    hook = bone._embedding.register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    yield seen
    hook.remove()


def test_few_lengths_and_little_filler() -> None:
    lines = {tokens: tokens + spare(tokens) for tokens in range(1, 16_385)}
    assert all(0 <= line - tokens < max(16, tokens / 16) for tokens, line in lines.items())
    assert all(line % 16 == 0 and spare(line) == 0 for line in lines.values())
    assert len(set(lines.values())) < 120
    assert len({line for tokens, line in lines.items() if tokens <= 2048}) <= 65


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("grad", [False, True])
def test_lines_of_bfloat16_are_filled_up(family: str, grad: bool) -> None:
    bone = tiny(family, "bfloat16", "eager")
    own = tasks(family, "bfloat16", "eager")[0]
    row = own.row(bone, "five words make a row")
    with lengths_of(bone) as seen, torch.set_grad_enabled(grad):
        scores = bone.forward([row] * 3, [own.prompt] * 3)
    assert len(scores) == 3
    assert seen == [3 * len(row) + spare(3 * len(row))]


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2", "llama"])
def test_nobody_notices_the_filler(family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the rows' scores nor the prompts' gradients."""
    bone = tiny(family, "bfloat16", attention)

    def found() -> list[Tensor]:
        prompts, leaves = [], []
        for seed, (soft, prefix) in enumerate(((3, 0), (0, 4))):
            own = manifest(bone, soft=soft)
            made = {
                name: tensor.requires_grad_()
                for name, tensor in tensors(bone, soft=soft, prefix=prefix, seed=seed).items()
            }
            leaves += made.values()
            prompts.append((own, bone.bind(own, made)))
        rows = [bone.row_encoder(own).encode(["five words make a row"])[0] for own, _ in prompts]
        assert spare(sum(map(len, rows)))
        scores = bone.forward(rows, [prompt for _, prompt in prompts])
        return [*scores, *torch.autograd.grad(torch.stack(scores)[:, 0].sum(), leaves)]

    with lengths_of(bone) as seen:
        filled = found()
        monkeypatch.setattr(type(bone._encoder), "_filler", lambda *_: 0)
        bare = found()
    assert seen[0] > seen[1]
    for one, other in zip(filled, bare, strict=True):
        # A product of another length may round otherwise; a token that is seen moves far more.
        assert (one - other).abs().max() <= 0.02 * other.abs().max()


def test_lines_under_autocast_are_filled_up() -> None:
    bone = tiny("bert", "float32", "eager")
    own = tasks("bert", "float32", "eager")[0]
    row = own.row(bone, "five words make a row")
    with lengths_of(bone) as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        bone.forward([row] * 3, [own.prompt] * 3)
    assert seen == [3 * len(row) + spare(3 * len(row))]


def test_lines_of_float32_are_as_long_as_their_rows() -> None:
    bone = tiny("bert", "float32", "eager")
    own = tasks("bert", "float32", "eager")[0]
    row = own.row(bone, "five words make a row")
    with lengths_of(bone) as seen:
        bone.forward([row] * 3, [own.prompt] * 3)
    assert seen == [3 * len(row)]


def test_keys_and_values_are_of_the_text_alone() -> None:
    bone = tiny("bert", "bfloat16", "eager")
    keys, values = bone.key_values([5, 6, 7])
    assert keys.shape[1] == values.shape[1] == 3


def test_filler_costs_no_position() -> None:
    """A line may be longer than the model has positions: what fills it stands at the first."""
    bone = tiny("bert", "bfloat16", "eager")
    count = bone.max_positions - 1
    rows = [text_row([5] * count)] * 7
    own = next(task for task in tasks("bert", "bfloat16", "eager") if not task.prompt.num_soft_tokens)
    assert spare(7 * count) > 0
    scores = bone.forward(rows, [own.prompt] * 7)
    assert all(torch.isfinite(row).all() for row in scores)
