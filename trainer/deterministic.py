"""Owns how torch computes while prompts are learned: the same bits each time, small things on one core.

Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_settings: Any = torch.utils.deterministic  # untyped


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for reproducible kernels (scatter-adds on several threads are not, by default)."""
    before, warn_only, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _settings.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Every tensor would be filled before it is written: for code that reads what it never wrote, which ours does not.
    _settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        _settings.fill_uninitialized_memory = fill


@contextmanager
def one_core() -> Iterator[None]:
    """Let this thread's operators run on one core; the backbone's own threads share the others (`backbone.workers`).

    What is computed beside the forward is small (a fold, an optimiser's step): a team of threads only waits there, and
    on a machine that does something else as well an LSTM took a second a step with two cores, and 17 ms with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
