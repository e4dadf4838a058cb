from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from trainer import head_only
from trainer.head_only import PATIENCE, STRENGTHS, fit, fit_probe
from trainer.scores import one_hot


def _problem(labels: int, rows: int = 120, width: int = 10) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(labels)
    features = torch.randn(rows, width, generator=generator)
    direction = torch.randn(width, labels, generator=generator)
    noisy = features @ direction + torch.randn(rows, labels, generator=generator)
    return features, noisy.argmax(dim=1).numpy()


def test_the_linear_head_is_the_regularised_optimum_that_scikit_learn_finds() -> None:
    features, gold = _problem(labels=4)
    strength = 1e-2
    weight, bias = fit(features, np.eye(4, dtype=np.float32)[gold], strength, multi_label=False)
    # scikit-learn minimises C · Σ loss + ½|w|²; ours is mean loss + strength · |w|².
    other = LogisticRegression(C=1 / (2 * strength * len(gold)), tol=1e-8, max_iter=2000).fit(
        features.numpy(), gold
    )
    ours = torch.softmax(features @ weight.T + bias, dim=1).numpy()
    assert np.abs(ours - other.predict_proba(features.numpy())).max() < 2e-3


def test_a_multi_label_head_is_one_logistic_regression_for_each_label() -> None:
    features, gold = _problem(labels=3)
    targets = np.stack([gold == 0, gold != 1], axis=1).astype(np.float32)
    strength = 1e-2
    weight, bias = fit(features, targets, strength, multi_label=True)
    for at in range(2):
        # The loss is a mean over both labels, so each label's share of it is one half.
        other = LogisticRegression(C=1 / (4 * strength * len(gold)), tol=1e-8, max_iter=2000)
        other.fit(features.numpy(), targets[:, at])
        ours = torch.sigmoid(features @ weight[at] + bias[at]).numpy()
        assert np.abs(ours - other.predict_proba(features.numpy())[:, 1]).max() < 2e-3


def test_dev_chooses_the_strength() -> None:
    features, gold = _problem(labels=2)
    targets = one_hot([[str(label)] for label in gold], ("0", "1"))
    probe = fit_probe(features[:80], targets[:80], features[80:], targets[80:], ("0", "1"), multi_label=False)
    assert probe.dev.accuracy > 0.7
    assert probe.logits(features).shape == (120, 2)
    assert set(probe.tensors()) == {"head.0.weight", "head.0.bias"}


def test_the_way_to_weak_strengths_ends_where_dev_has_fallen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def noting(features: torch.Tensor, targets: np.ndarray, strength: float, **more: object) -> object:
        tried.append(strength)
        return fit(features, targets, strength, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(head_only, "fit", noting)
    generator = torch.Generator().manual_seed(4)
    # Few rows, and most directions mean nothing: the weaker the strength, the more noise is learned.
    features = torch.randn(1000, 60, generator=generator)
    noise = torch.randn(1000, generator=generator)
    gold = (features[:, :20].sum(dim=1) / 4 + noise > 0).long().numpy()
    features = features * 0.3
    targets = np.eye(2, dtype=np.float32)[gold]
    parts = (features[:120], targets[:120], features[120:], targets[120:])
    probe = fit_probe(*parts, ("0", "1"), multi_label=False)
    accuracies = []
    for strength in reversed(STRENGTHS):
        weight, bias = fit(*parts[:2], strength, multi_label=False)
        right = (parts[2] @ weight.T + bias).argmax(dim=1).numpy() == gold[120:]
        accuracies.append(right.mean())
    assert PATIENCE < len(tried) < len(STRENGTHS)
    assert tried == list(reversed(STRENGTHS))[: len(tried)]
    assert sum(accuracy < max(accuracies) for accuracy in accuracies[: len(tried)]) >= PATIENCE
    assert probe.dev.accuracy == max(accuracies)
