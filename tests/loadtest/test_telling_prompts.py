from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from loadtest.faults.telling_prompts import (
    LETTERLESS,
    SOFT_PROMPTS,
    TASKS,
    VERSIONS,
    Telling,
    read_scores,
    soft_prompt_of,
    telling_prompt,
)
from loadtest.faults.told_answers import Told, ToldTasks
from prompt_store import decode_prompt, encode_prompt, version_of
from server.prompt_cache import SLOT_OVERHEAD
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
    # Digits of two versions (0110 and 1001, cut in the middle) read as a third. An answer with such scores is caught by
    # the version that it names (below).
    assert read_scores([*one[:24], *two[24:]]) == (3, 5)
    assert read_scores([]) is None
    assert read_scores([0.0] * len(one)) is None
    assert read_scores([1 / len(one)] * len(one)) is None


def test_there_are_no_more_than_can_be_told_apart() -> None:
    for task, number in ((TASKS, 0), (0, VERSIONS), (-1, 0)):
        with pytest.raises(ValueError, match="told apart"):
            telling_prompt("t", task, number, REF, soft=False)


def answer(tasks: ToldTasks, version: Telling, rows: list[list[float]], *, task: int = 1) -> bytes:
    data = [{"index": at, "probs": probs} for at, probs in enumerate(rows)]
    return json.dumps({"task_id": tasks.ids[task], "version": version.version, "data": data}).encode()


def test_an_answer_whose_parts_do_not_belong_together_is_found() -> None:
    tasks = ToldTasks(3, "fake", seed=0)
    old, new, other = tasks.prompt(1, 0), tasks.prompt(1, 1), tasks.prompt(2, 0)
    number = next(at for at in range(99) if len(tasks.texts(at)) == 3)

    def read(version: Telling, *by: Telling, task: int = 1) -> Any:
        return tasks.read(1, number, answer(tasks, version, [scores(one) for one in by], task=task))

    assert read(new, new, new, new) == Told(1, 1, new.version)
    assert read(new, old, old, old).startswith("mixed: ")
    assert read(old, new, new, new).startswith("mixed: ")
    # A move in the middle of a request for several texts gives one version for all of them.
    assert read(new, new, new, old).startswith("mixed: ")
    assert read(new, old, new, new).startswith("mixed: ")
    assert read(other, other, other, other).startswith("another task's: ")
    assert read(new, new, new, other).startswith("another task's: ")
    assert read(new, new, new, new, task=2).startswith("another task's: ")
    assert read(Telling("f" * 64, b""), new, new, new).startswith("mixed: ")
    assert read(new).startswith("other rows: ")
    assert read(new, new, new).startswith("other rows: ")
    assert read(new, new, new, new, new).startswith("other rows: ")
    half = [(a + b) / 2 for a, b in zip(scores(old), scores(new), strict=True)]
    assert str(tasks.read(1, number, answer(tasks, new, [scores(new), half, half]))).startswith("mixed: ")
    two, one = tasks.prompt(1, 2), scores(new)
    cut = [*one[:25], *scores(two)[25:]]
    assert read_scores(cut) == (1, 0)  # a version that there is
    for named in (old, new, two):
        said = tasks.read(1, number, answer(tasks, named, [one, cut, one]))
        assert str(said).startswith("mixed: ")


def test_rows_in_another_order_are_found() -> None:
    tasks = ToldTasks(3, "fake", seed=0)
    version = tasks.prompt(1, 0)
    number = next(at for at in range(99) if len(tasks.texts(at)) == 3)
    right = json.loads(answer(tasks, version, [scores(version)] * 3))
    assert tasks.read(1, number, json.dumps(right).encode()) == Told(1, 0, version.version)
    for order in ((1, 0, 2), (2, 1, 0), (0, 0, 1), (1, 2, 3)):
        for at, row in zip(order, right["data"], strict=True):
            row["index"] = at
        assert str(tasks.read(1, number, json.dumps(right).encode())).startswith("other rows: ")


def test_each_version_that_is_made_is_the_next_and_known_in_answers() -> None:
    tasks = ToldTasks(3, "fake", seed=0)
    tasks.prompt(1, 0)
    made = [tasks.make(task) for task in (1, 1, 2)]
    versions = [version_of(data) for data in made]
    assert [tasks.data[version] for version in versions] == made
    for (task, number), version in zip(((1, 1), (1, 2), (2, 0)), versions, strict=True):
        one = Telling(version, tasks.data[version])
        body = answer(tasks, one, [scores(one)] * len(tasks.texts(5)), task=task)
        assert tasks.read(task, 5, body) == Told(task, number, version)
    assert [tasks.index(task_id) for task_id in tasks.ids] == [0, 1, 2]


def test_a_request_may_name_a_version() -> None:
    tasks = ToldTasks(3, "fake", seed=0)
    asked = json.loads(tasks.body(2, 7))
    assert json.loads(tasks.body(2, 7, version="a")) == {**asked, "version": "a"}


def test_requests_have_one_to_eight_texts_of_each_task() -> None:
    tasks = ToldTasks(3, "fake", seed=0)
    assert {len(tasks.texts(number)) for number in range(1021)} == set(range(1, 9))
    inputs = [json.loads(tasks.body(2, number))["input"] for number in range(50)]
    lengths = [len(texts) if isinstance(texts, list) else 1 for texts in inputs]
    assert lengths == [len(tasks.texts(number)) for number in range(50)]
    assert json.loads(tasks.body(2, 7))["task_id"] == tasks.ids[2]


def test_servers_have_slots_for_a_share_of_the_prompts() -> None:
    tasks = ToldTasks(10, "fake", seed=0)
    one = tasks.prompt(0, 0).nbytes + SLOT_OVERHEAD
    assert tasks.flags(0.5) == ("--prompt-cache-bytes", str(5 * one))
    assert tasks.flags(0.0) == ("--prompt-cache-bytes", str(one))


def test_versions_and_tasks_that_follow_each_other_have_other_soft_prompts() -> None:
    for task, number in ((0, 0), (5, 15), (611, 77)):
        here = soft_prompt_of(task, number)
        assert here != soft_prompt_of(task, number + 1)
        assert here != soft_prompt_of(task + 1, number)
    assert {soft_prompt_of(3, number) for number in range(SOFT_PROMPTS)} == set(range(SOFT_PROMPTS))


def test_an_old_soft_prompt_or_old_weights_under_a_new_head_are_found() -> None:
    from backbone import load_backbone
    from loadtest.faults.soft_scores import SoftScores

    backbone = load_backbone("minilm")
    texts = ["1 fine day", "1 a longer text without any meaning at all"]
    right = SoftScores(backbone, texts)

    def answers(tensors_of: Telling, **others: Telling) -> list[tuple[float, ...]]:
        prompt = decode_prompt(tensors_of.data)
        tensors = dict(prompt.tensors)
        for name, of in others.items():
            tensors[name.replace("_0_", ".0.")] = decode_prompt(of.data).tensors[name.replace("_0_", ".0.")]
        loaded = backbone.load_prompt(decode_prompt(encode_prompt(prompt.manifest, tensors)))
        return backbone.score(backbone.row_encoder(prompt.manifest).encode(texts), [loaded] * len(texts))

    old, new = (telling_prompt("t", 3, number, backbone.shape, soft=True) for number in (6, 7))
    rows = answers(new)
    assert [read_scores(row) for row in rows] == [(3, 7), (3, 7)]
    assert right.wrong(3, 7, [0, 1], rows) is None
    assert right.wrong(3, 7, [1], rows[1:]) is None
    assert "row 0 is" in str(right.wrong(3, 7, [1, 0], rows))  # the other text's
    for stale in ({"soft_prompt": old}, {"head_0_weight": old}):
        rows = answers(new, **stale)
        # The digits alone do not show it.
        assert [read_scores(row) for row in rows] == [(3, 7), (3, 7)]
        assert "off what soft prompt" in str(right.wrong(3, 7, [0, 1], rows))
    assert "off what" in str(right.wrong(3, 7, [0], [row[:-1] for row in rows[:1]]))
