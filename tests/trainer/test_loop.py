from __future__ import annotations

import torch

from trainer.loop import deterministic


def test_determinism_is_asked_for_and_given_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
