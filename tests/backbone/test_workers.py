"""Rows shared among cores: nothing is lost, order is kept, and one failure fails the batch."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from backbone.workers import Workers, divide


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80), st.integers(1, 8))
def test_divide_deals_every_row_once_and_evenly(lengths: list[int], shares: int) -> None:
    dealt = divide(lengths, shares)
    assert sorted(row for share in dealt for row in share) == list(range(len(lengths)))
    loads = [sum(lengths[row] for row in share) for share in dealt]
    assert max(loads) - min(loads) <= max(lengths) or len(dealt) < shares


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80))
def test_every_share_comes_with_its_own_results(lengths: list[int]) -> None:
    shared = Workers(3).map(lambda share: [row * 7 for row in share], lengths)
    assert sorted(row for share, _ in shared for row in share) == list(range(len(lengths)))
    assert all(values == [row * 7 for row in share] for share, values in shared)


def test_a_failing_share_fails_the_batch() -> None:
    def half(share: list[int]) -> list[int]:
        if 3 in share:
            raise RuntimeError("out of memory")
        return share

    with pytest.raises(RuntimeError, match="out of memory"):
        Workers(2).map(half, [200] * 6)
