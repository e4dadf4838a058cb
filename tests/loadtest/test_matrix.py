from __future__ import annotations

import pytest
import torch

from loadtest.bench import matrix


def test_operations() -> None:
    assert matrix.operations([(2, 3, 5), (2, 5, 3)]) == 2 * (2 * 3 * 5) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_runs(dtype: torch.dtype) -> None:
    ways = matrix.ways([(8, 16, 32), (8, 32, 16)], dtype, torch.device("cpu"), seconds=0.001)
    assert ways
    assert all(way.run() > 0 for way in ways)
    assert len({way.name for way in ways}) == len(ways)
