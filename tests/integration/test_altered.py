"""Altered bytes in short; `python -m loadtest.faults altered` has every alteration."""

import random
from argparse import Namespace
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.faults import altered
from loadtest.faults.alterations import ALTERATIONS, Material
from loadtest.faults.told_answers import ToldTasks


@pytest.mark.parametrize(
    ("store", "how"),
    [
        ("file", "another task's prompt"),
        pytest.param("redis", "bit of a tensor", marks=pytest.mark.slow),
    ],
)
def test_altered_bytes_are_refused_counted_and_never_answer(store: str, how: str) -> None:
    options = Namespace(stores=[store], only=[how], tries=1, seed=0)
    outcome = altered.run(options, Console(quiet=True))
    assert outcome.passed, (outcome.rows, outcome.facts)


def test_every_alteration_alters(tmp_path: Path) -> None:
    tasks = ToldTasks(2, "fake", seed=0)
    data, sibling, stranger = (tasks.make(task) for task in (0, 0, 1))
    for how, alteration in ALTERATIONS.items():
        for seed in range(20):
            assert alteration(Material(data, sibling, stranger, tmp_path), random.Random(seed)) != data, how
