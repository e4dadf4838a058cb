"""Owns the linear probe: a linear head on frozen features. Knows features and targets; knows no model and no
file.

Features do not depend on the head, so they are computed once and the head is fitted on them to convergence,
by L-BFGS on the convex, L2-regularised loss. The strength of the regularisation is chosen on dev. The same
solution is the reference row of every run's table and the starting head of the prompt methods (linear probing
then tuning: Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.deterministic import one_core
from trainer.evaluation import loss, score
from trainer.networks import generator_of
from trainer.scores import Scores, Targets

# Weights of the squared norm beside the mean loss, from hardly any to strong.
STRENGTHS = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
MAX_ITERATIONS = 300
# Dev rises and falls along the strengths: after so many that are worse than the best, weaker ones are not tried. They
# are the ones that take longest.
PATIENCE = 2
# Below so many products (rows · width · labels) a step of the fit is over before a team of threads has met.
_WORTH_THREADS = 1 << 26
# Which of a seed's numbers a random head is drawn from (`networks.generator_of`).
_PURPOSE = 4


@dataclass(frozen=True)
class LinearProbe:
    """The fitted head, weight [labels, hidden] and bias [labels], with its dev scores."""

    weight: Tensor
    bias: Tensor
    strength: float
    dev: Scores

    def logits(self, features: Tensor) -> Tensor:
        """Label logits [rows, labels] of features [rows, hidden]."""
        return features @ self.weight.T + self.bias

    def tensors(self) -> dict[str, Tensor]:
        """Named as in the prompt file."""
        return {"head.0.weight": self.weight, "head.0.bias": self.bias}


def fit(
    features: Tensor,
    targets: Targets,
    strength: float,
    *,
    multi_label: bool,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise mean loss + strength · |weight|²; weight [labels, hidden], bias [labels] unregularised.

    Features [rows, hidden] and targets [rows, labels]. `start` shortens the way to the one minimum.
    """
    gold = torch.from_numpy(targets)
    weight, bias = start or (torch.zeros(gold.shape[1], features.shape[1]), torch.zeros(gold.shape[1]))
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = (
            loss(features @ weight.T + bias, gold, multi_label=multi_label) + strength * weight.square().sum()
        )
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def fit_probe(
    train: Tensor,
    train_targets: Targets,
    dev: Tensor,
    dev_targets: Targets,
    labels: Sequence[str],
    *,
    multi_label: bool,
) -> LinearProbe:
    """Fit one head for each strength, strong ones first, and keep the best on dev; of equals, the most regularised."""
    best: LinearProbe | None = None
    start: tuple[Tensor, Tensor] | None = None
    worse = 0
    small = train.numel() * len(labels) < _WORTH_THREADS
    with one_core() if small else nullcontext():
        for strength in reversed(STRENGTHS):
            weight, bias = start = fit(train, train_targets, strength, multi_label=multi_label, start=start)
            scores = score(dev @ weight.T + bias, dev_targets, labels, multi_label=multi_label)
            if best is None or (scores.accuracy, scores.macro_f1) > (best.dev.accuracy, best.dev.macro_f1):
                best, worse = LinearProbe(weight, bias, strength, scores), 0
                continue
            worse += scores.accuracy < best.dev.accuracy
            if worse == PATIENCE:
                break
    assert best is not None, "there is at least one strength"
    return best


def random_head(like: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A head of the same shapes that has learned nothing: small Gaussian weights, no bias."""
    generator = generator_of(seed, _PURPOSE)
    return {
        name: torch.zeros_like(tensor)
        if name.endswith("bias")
        else torch.randn(tensor.shape, generator=generator) * 0.02
        for name, tensor in like.items()
    }
