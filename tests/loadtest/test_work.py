from __future__ import annotations

from pathlib import Path

import numpy as np

from loadtest.bench.peers.work import Work, pad


def work() -> Work:
    rows = [np.arange(1, 1 + length, dtype=np.int64) for length in (5, 3, 7, 4)]
    return Work(rows, np.array([0, 1, 0, 2], dtype=np.int64))


def test_work_is_read_as_it_was_written(tmp_path: Path) -> None:
    work().save(tmp_path / "work.npz")
    read = Work.load(str(tmp_path / "work.npz"))
    assert [row.tolist() for row in read.rows] == [row.tolist() for row in work().rows]
    assert read.tasks.tolist() == [0, 1, 0, 2]


def test_batches_have_every_row_once() -> None:
    assert list(work().batches(3, sort=False)) == [[0, 1, 2], [3]]
    assert list(work().batches(3, sort=True)) == [[1, 3, 0], [2]]


def test_padding_is_not_attended_and_special_tokens_are_not_averaged() -> None:
    ids, attended, text = pad(work().rows[:2])
    assert ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]]
    assert attended.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert text.tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
