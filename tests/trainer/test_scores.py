from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from trainer.scores import decide, majority, measure, one_hot

LABELS = ("a", "b", "c", "never")


def test_single_label_measures_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    gold, predicted = generator.integers(0, 3, 200), generator.integers(0, 3, 200)
    eye = np.eye(4, dtype=np.float32)
    scores = measure(eye[gold], eye[predicted], LABELS, multi_label=False)
    assert scores.accuracy == pytest.approx(accuracy_score(gold, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert np.array_equal(scores.confusion, confusion_matrix(gold, predicted, labels=range(4)))
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
