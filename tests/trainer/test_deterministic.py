from __future__ import annotations

import torch

from trainer.deterministic import deterministic, one_core


def test_determinism_is_asked_for_and_given_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_one_core_is_asked_for_and_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
