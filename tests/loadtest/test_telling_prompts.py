from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from loadtest.faults.telling_prompts import (
    LETTERLESS,
    TASKS,
    VERSIONS,
    Telling,
    read_scores,
    telling_prompt,
)
from loadtest.faults.told_answers import Told, ToldTasks
from prompt_store import decode_prompt
from tests.server.fakes import REF, FakeBackbone, FakeEncoder


def scores(prompt: Telling, text: str = LETTERLESS + "and more") -> list[float]:
    decoded = decode_prompt(prompt.data)
    fake = FakeBackbone()
    (row,) = FakeEncoder(decoded.manifest).encode([text])
    return list(fake.score_on_lane([row], [fake.load_prompt(decoded)])[0])


@pytest.mark.parametrize("task", [0, 1, 612, TASKS - 1])
@pytest.mark.parametrize("number", [0, 1, 5461, VERSIONS - 1])
def test_scores_tell_the_task_and_the_version(task: int, number: int) -> None:
    assert read_scores(scores(telling_prompt("t", task, number, REF, soft=False))) == (task, number)


def test_a_bfloat16s_rounding_does_no_harm() -> None:
    exact = np.array(scores(telling_prompt("t", 341, 9999, REF, soft=False)), np.float32)
    rounded = ((exact.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)
    assert not np.array_equal(exact, rounded)
    assert read_scores([float(score) for score in rounded]) == (341, 9999)


def test_a_mixture_of_two_is_none() -> None:
    one, two = (scores(telling_prompt("t", 3, number, REF, soft=False)) for number in (6, 9))
    for share in (0.1, 0.5, 0.9):
        mixed = [share * a + (1 - share) * b for a, b in zip(one, two, strict=True)]
        assert read_scores(mixed) is None
    assert read_scores([*one[:13], *two[13:]]) in (None, (3, 9), (3, 6))
    assert read_scores([]) is None
    assert read_scores([0.0] * len(one)) is None
    assert read_scores([1 / len(one)] * len(one)) is None


def test_there_are_no_more_than_can_be_told_apart() -> None:
    for task, number in ((TASKS, 0), (0, VERSIONS), (-1, 0)):
        with pytest.raises(ValueError, match="told apart"):
            telling_prompt("t", task, number, REF, soft=False)


def test_an_answer_whose_parts_do_not_belong_together_is_found() -> None:
    tasks = ToldTasks(3, "fake", seed=0)
    old, new, other = tasks.prompt(1, 0), tasks.prompt(1, 1), tasks.prompt(2, 0)

    def answer(version: Telling, by: Telling, task: int = 1) -> Any:
        body = {"task_id": tasks.ids[task], "version": version.version, "data": [{"probs": scores(by)}]}
        return tasks.read(1, json.dumps(body).encode())

    assert answer(new, new) == Told(1, 1, new.version)
    assert answer(new, old).startswith("mixed: ")
    assert answer(old, new).startswith("mixed: ")
    assert answer(other, other).startswith("another task's: ")
    assert answer(new, new, task=2).startswith("another task's: ")
    assert answer(Telling("f" * 64, b""), new).startswith("mixed: ")
    half = [(a + b) / 2 for a, b in zip(scores(old), scores(new), strict=True)]
    body = {"task_id": tasks.ids[1], "version": new.version, "data": [{"probs": half}]}
    assert str(tasks.read(1, json.dumps(body).encode())).startswith("mixed: ")
