"""How many tokens a line has: few lengths in bfloat16 on CPUs, and nobody notices the filler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from backbone import Backbone
from backbone.encoder import spare
from backbone.rows import text_row
from tests.backbone.families import tiny
from tests.backbone.law_tasks import tasks


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
