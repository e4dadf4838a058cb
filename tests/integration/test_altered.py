"""Altered bytes in short; `python -m loadtest.faults altered` has every alteration."""

import random
from argparse import Namespace
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.faults import altered
from loadtest.faults.alterations import ALTERATIONS, Material
from loadtest.faults.telling import TEXTS, Ledger
from prompt_store import decode_prompt, version_of
from tests.server.fakes import REF, FakeBackbone


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
    ledger = Ledger(REF, 2)
    data, sibling, stranger = (ledger.make(task) for task in (*ledger.tasks[:1] * 2, ledger.tasks[1]))
    for how, alteration in ALTERATIONS.items():
        for seed in range(20):
            assert alteration(Material(data, sibling, stranger, tmp_path), random.Random(seed)) != data, how


def test_scores_of_another_version_are_noticed() -> None:
    ledger = Ledger(REF, 2)
    task = ledger.tasks[1]
    first, second = (version_of(ledger.make(task)) for _ in range(2))
    right = {"task_id": task, "version": second, "data": [{"probs": _scores(ledger.data[second])}]}
    assert ledger.wrong(task, right) is None
    assert ledger.wrong(ledger.tasks[0], right)
    assert ledger.wrong(task, right | {"version": first})
    assert ledger.wrong(task, right | {"version": "0" * 64})


def _scores(data: bytes) -> list[float]:
    prompt, backbone = decode_prompt(data), FakeBackbone()
    rows = backbone.row_encoder(prompt.manifest).encode([TEXTS[0]])
    return list(backbone.score_on_lane(rows, [backbone.load_prompt(prompt)])[0])
