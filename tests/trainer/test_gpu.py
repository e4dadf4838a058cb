"""Training on a CUDA device: mixed is solo, and a saved learner goes on there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from backbone import Backbone, load_backbone
from tests.backbone.families import checkpoint
from tests.trainer.test_mixture import _kinds, _learners
from trainer import TrainConfig
from trainer.checkpoints import Checkpoints
from trainer.deterministic import deterministic
from trainer.learner import Learner
from trainer.mixture import step

DEVICE = "cuda"
Settings = Callable[..., TrainConfig]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("quick_runs"),
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="NO GPU: training on CUDA is not tested on this machine"
    ),
]


@pytest.fixture(scope="module")
def gpu() -> Backbone:
    return load_backbone(str(checkpoint("bert")), device=DEVICE, dtype="float32")


def test_gradients_in_the_mix_are_those_of_each_alone(
    gpu: Backbone, settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners = _learners(gpu, _kinds(settings, tmp_path), console)
    step(gpu, learners)  # a residual network's weights have a gradient only from the second step on
    seen: list[Sequence[Tensor | None]] = []
    monkeypatch.setattr(Learner, "advance", lambda _, __, gradients: seen.append(gradients))
    for learner in learners:
        step(gpu, [learner])
    step(gpu, learners)
    alone, mixed = seen[: len(learners)], seen[len(learners) :]
    for learner, one, other in zip(learners, alone, mixed, strict=True):
        for name, want, got in zip(learner.parameters, one, other, strict=True):
            assert want is not None
            assert got is not None
            assert got.device.type == DEVICE
            assert want.abs().max() > (1e-6 if name.startswith("reparam.") else 1e-4), (
                f"{name} of {learner.name}"
            )
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5, msg=f"{name} of {learner.name}")


def test_a_restored_learner_goes_on_where_it_stood(
    gpu: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    configs = _kinds(settings, tmp_path)
    learners, others = (_learners(gpu, configs, console) for _ in range(2))
    with deterministic():
        for _ in range(2):
            step(gpu, learners)
        Checkpoints(tmp_path / "state").save(learners)
        for other in others:
            Checkpoints(tmp_path / "state").restore(other)
        losses = step(gpu, learners), step(gpu, others)
    assert losses[0] == losses[1]
    for learner, other in zip(learners, others, strict=True):
        for name, tensor in learner.parameters.items():
            assert tensor.device.type == DEVICE
            assert torch.equal(tensor, other.parameters[name]), f"{name} of {learner.name}"
