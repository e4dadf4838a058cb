from __future__ import annotations

import statistics

from loadtest import workload
from loadtest.bench import ours

ROWS = 1024


def lengths(texts: list[str]) -> list[int]:
    return [len(row) for row in ours.encode(ours.load("eager", dtype="float32"), "bare", texts)]


def test_short_texts_are_as_long_as_sentences() -> None:
    found = lengths(workload.texts(ROWS))
    assert min(found) >= 5
    assert max(found) <= 64
    assert 26 < statistics.mean(found) < 29


def test_long_texts_have_a_long_tail() -> None:
    found = lengths(workload.long_texts(ROWS))
    assert max(found) == 512
    assert statistics.median(found) < statistics.mean(found) < 200


def test_texts_are_the_same_every_time() -> None:
    assert workload.texts(8) == workload.texts(8)
    assert workload.long_texts(8) == workload.long_texts(8)
