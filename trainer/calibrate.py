"""Owns calibration: scores = (logits + bias) / temperature, fitted on labelled logits. Knows no model.

Temperature scaling (Guo et al. 2017, arXiv 1706.04599) leaves single-label decisions as they are and makes
the probabilities honest. A bias for each label besides is for hard prompts, whose zero-shot scores lean
towards some labels whatever the text (Zhao et al. 2021, arXiv 2102.09690).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_store import Calibration
from trainer.evaluation import loss
from trainer.scores import Targets


def calibrate(logits: Tensor, targets: Targets, *, multi_label: bool, with_bias: bool) -> Calibration:
    """Fit temperature (and bias) on logits [rows, labels] by minimising the mean loss."""
    gold = torch.from_numpy(targets)
    log_temperature = torch.zeros((), requires_grad=True)
    bias = torch.zeros(logits.shape[1], requires_grad=with_bias)
    parameters = [log_temperature, bias] if with_bias else [log_temperature]
    optimiser = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        # Held within e^±4: separable data would drive the temperature to zero and the scores out of range.
        temperature = log_temperature.clamp(-4.0, 4.0).exp()
        value = (
            loss((logits + bias) / temperature, gold, multi_label=multi_label) + 1e-4 * bias.square().sum()
        )
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    # Rounded, so that the manifest's bytes do not depend on the last bits of a line search.
    temperature = round(float(log_temperature.detach().clamp(-4.0, 4.0).exp()), 4)
    return Calibration(
        temperature=temperature, bias=tuple(round(float(b), 4) for b in bias.detach()) if with_bias else None
    )
