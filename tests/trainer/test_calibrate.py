from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.calibrate import calibrate
from trainer.evaluation import loss


def _labelled(multi_label: bool) -> tuple[torch.Tensor, np.ndarray]:
    """Logits and labels drawn from the very probabilities that the logits say."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 3, generator=generator)
    if multi_label:
        return logits, (torch.rand(4000, 3, generator=generator) < logits.sigmoid()).float().numpy()
    drawn = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, np.eye(3, dtype=np.float32)[drawn]


@pytest.mark.parametrize("multi_label", [False, True])
def test_temperature_makes_overconfident_logits_honest(multi_label: bool) -> None:
    logits, targets = _labelled(multi_label)
    found = calibrate(4 * logits, targets, multi_label=multi_label, with_bias=False)
    assert found.temperature == pytest.approx(4.0, rel=0.1)
    assert found.bias is None


def test_bias_takes_a_leaning_back() -> None:
    logits, targets = _labelled(multi_label=False)
    leaning = torch.tensor([3.0, 0.0, -1.0])
    found = calibrate(logits + leaning, targets, multi_label=False, with_bias=True)
    assert found.bias is not None
    repaired = (logits + leaning + torch.tensor(found.bias)) / found.temperature
    gold = torch.from_numpy(targets)
    assert (
        float(loss(repaired, gold, multi_label=False)) < float(loss(logits, gold, multi_label=False)) + 0.01
    )


def test_separable_scores_keep_a_bounded_temperature() -> None:
    targets = np.eye(2, dtype=np.float32)[[0, 1] * 10]
    found = calibrate(torch.from_numpy(targets), targets, multi_label=False, with_bias=True)
    assert 0.01 < found.temperature < 60
