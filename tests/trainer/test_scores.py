from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from trainer.scores import MAX_DENSE_LABELS, Scores, Targets, decide, majority, measure, one_hot

LABELS = ("a", "b", "c", "never")


def test_single_label_measures_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    gold, predicted = generator.integers(0, 3, 200), generator.integers(0, 3, 200)
    eye = np.eye(4, dtype=np.float32)
    scores = measure(eye[gold], eye[predicted], LABELS, multi_label=False)
    assert scores.accuracy == pytest.approx(accuracy_score(gold, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert np.array_equal(scores.as_dict()["confusion"], confusion_matrix(gold, predicted, labels=range(4)))
    expected = precision_recall_fscore_support(gold, predicted, labels=range(4), zero_division=0)
    got = [(s.precision, s.recall, s.f1, s.support) for s in scores.per_label]
    assert np.allclose(np.array(got).T, expected)


def test_multi_label_measures_equal_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    gold, predicted = (generator.integers(0, 2, (100, 4)).astype(np.float32) for _ in range(2))
    scores = measure(gold, predicted, LABELS, multi_label=True)
    assert scores.accuracy == pytest.approx(accuracy_score(gold, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert scores.confusion == ()
    assert scores.as_dict()["confusion"] == []


def _drawn(labels: int, examples: int) -> tuple[Targets, Targets, tuple[str, ...]]:
    """Gold labels, predictions that are often right, and names."""
    generator = np.random.default_rng(labels)
    gold = generator.integers(0, labels, examples)
    predicted = np.where(generator.random(examples) < 0.5, gold, generator.integers(0, labels, examples))
    eye = np.eye(labels, dtype=np.float32)
    return eye[gold], eye[predicted], tuple(f"label {at}" for at in range(labels))


def test_the_confusion_of_many_labels_is_as_long_as_the_examples_and_has_names() -> None:
    gold, predicted, labels = _drawn(5000, 60)
    scores = measure(gold, predicted, labels, multi_label=False)
    assert len(scores.confusion) <= 60
    told = scores.as_dict()["confusion"]
    expected = confusion_matrix(gold.argmax(axis=1), predicted.argmax(axis=1), labels=range(5000))
    assert {(labels[g], labels[p]): expected[g, p] for g, p in zip(*expected.nonzero(), strict=True)} == {
        (g, p): count for g, row in told.items() for p, count in row.items()
    }


@pytest.mark.parametrize(("labels", "kind"), [(MAX_DENSE_LABELS, list), (MAX_DENSE_LABELS + 1, dict)])
def test_scores_come_back_from_what_is_written(labels: int, kind: type) -> None:
    gold, predicted, names = _drawn(labels, 300)
    for multi_label in (False, True):
        scores = measure(gold, predicted, names, multi_label=multi_label)
        told = json.loads(json.dumps(scores.as_dict()))
        assert isinstance(told["confusion"], kind)
        assert Scores.from_dict(told) == scores


def test_scores_of_many_labels_that_were_written_with_all_zeros_are_read() -> None:
    gold, predicted, names = _drawn(MAX_DENSE_LABELS + 1, 300)
    scores = measure(gold, predicted, names, multi_label=False)
    matrix = [[int(count) for count in row] for row in gold.T @ predicted]
    assert Scores.from_dict({**scores.as_dict(), "confusion": matrix}) == scores


def test_decisions_are_the_best_label_or_all_at_their_threshold() -> None:
    values = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.55]], dtype=np.float32)
    assert decide(values, multi_label=False).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert decide(values, multi_label=True).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert decide(values, multi_label=True, thresholds=(0.7, 0.1, 0.3)).tolist() == [[0, 1, 1], [0, 1, 1]]


def test_majority_answers_the_commonest_training_label() -> None:
    train = one_hot([["a"], ["b"], ["b"]], LABELS)
    gold = one_hot([["a"], ["b"], ["b"], ["c"]], LABELS)
    scores = majority(train, gold, LABELS, multi_label=False)
    assert scores.accuracy == 0.5
    assert scores.macro_f1 == pytest.approx((0 + 2 / 3 + 0) / 3)


def test_majority_of_a_multi_label_task_is_the_commonest_set() -> None:
    train = one_hot([["a", "b"], ["b"], ["a", "b"], []], LABELS)
    gold = one_hot([["a", "b"], []], LABELS)
    assert majority(train, gold, LABELS, multi_label=True).accuracy == 0.5


def test_majority_of_equals_is_the_first_in_training_order() -> None:
    train = one_hot([["c"], ["a"], ["a"], ["never"], ["c"]], LABELS)
    assert majority(train, one_hot([["c"]], LABELS), LABELS, multi_label=False).accuracy == 1.0
    train = one_hot([["a"], ["b", "c"], ["c", "b"], ["a"]], LABELS)
    assert majority(train, one_hot([["a"]], LABELS), LABELS, multi_label=True).accuracy == 1.0


def test_majority_finds_any_of_many_labels() -> None:
    names = tuple(f"label {at}" for at in range(19))
    for name in names:
        train = one_hot([[other] for other in (*names, name)], names)
        assert majority(train, one_hot([[name]], names), names, multi_label=False).accuracy == 1.0
