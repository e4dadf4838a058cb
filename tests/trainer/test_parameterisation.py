"""Raw tensors and what they fold to."""

from __future__ import annotations

import pytest
import torch

from trainer.methods import group_of
from trainer.parameterisation import Plain


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("soft_prompt", "prompt"),
        ("prefix.cross.value", "prompt"),
        ("reparam.soft_prompt.head.weight", "prompt"),
        ("shared.soft_prompt", "prompt"),
        ("task.12.soft_prompt.u", "prompt"),
        ("head.0.weight", "head"),
        ("verbalizer.label_embeddings", "head"),
        ("task.12.head.0.bias", "head"),
    ],
)
def test_heads_have_a_learning_rate_of_their_own(name: str, group: str) -> None:
    assert group_of(name) == group


def test_plain_trains_what_is_served() -> None:
    wanted = {"soft_prompt": torch.randn(3, 5), "head.0.weight": torch.randn(2, 5)}
    folded = Plain().fold(Plain().start(wanted, seed=0))
    assert folded.keys() == wanted.keys()
    assert all(folded[name] is tensor for name, tensor in wanted.items())
