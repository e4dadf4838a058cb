"""Owns optimisation: one seed's way from starting values to the best tensors on dev, resumable at any step.

Everything random is a function of (seed, epoch), so a run that was killed and resumed goes through the same
batches and ends with the same bits. Knows nothing of files of examples, run folders or tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from backbone import Backbone, Row
from prompt_store import Manifest
from trainer.config import OptimiserConfig
from trainer.errors import TrainingFailedError
from trainer.evaluation import Encoded, logits, loss, score
from trainer.methods import Group, group_of
from trainer.report import Point
from trainer.rows import TrainingRows
from trainer.schedule import Schedule, batches
from trainer.scores import Scores
from trainer.state import Checkpoint, load_checkpoint, save_checkpoint

Tensors = Mapping[str, Tensor]


class Listener(Protocol):
    """What a caller may want to know while a seed is trained; the progress bar is one."""

    def stepped(self, step: int, loss: float) -> None:
        """A step was made; `step` counts from 1, `loss` is its batch's."""

    def evaluated(self, point: Point) -> None:
        """The dev set was scored."""


@dataclass(frozen=True)
class SeedResult:
    """What one seed learned: the tensors of its best dev evaluation, and how it got there."""

    seed: int
    tensors: dict[str, Tensor]
    dev: Scores
    points: tuple[Point, ...]
    steps: int


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for reproducible kernels (scatter-adds on several threads are not, by default)."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


class SeedTraining:
    """One seed's training: parameters, optimiser, weight average, best state, and the position in the
    data.
    """

    def __init__(
        self,
        backbone: Backbone,
        manifest: Manifest,
        start: Tensors,
        settings: OptimiserConfig,
        train: TrainingRows,
        dev: Encoded,
        *,
        seed: int,
        frozen: Tensors | None = None,
    ) -> None:
        """`start` holds the tensors to train, named as in the prompt file; `frozen` those that only take
        part.
        """
        self._backbone, self._manifest, self._settings = backbone, manifest, settings
        self._train, self._dev, self._seed = train, dev, seed
        self._frozen = dict(frozen or {})
        self._targets = torch.from_numpy(train.targets).to(backbone.device)
        self.schedule = Schedule.of(settings, len(train))
        self._parameters = {
            name: tensor.detach().to(backbone.device, torch.float32).clone().requires_grad_()
            for name, tensor in start.items()
        }
        self._optimiser = torch.optim.AdamW(self._groups(), foreach=False)
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._best: dict[str, Tensor] = {}
        self._best_dev: Scores | None = None
        self._points: list[Point] = []
        self._step, self._loss_sum, self._loss_count, self._stale = 0, 0.0, 0, 0

    def run(
        self, *, checkpoint: Path, listener: Listener, stop: Callable[[], bool] = lambda: False
    ) -> SeedResult | None:
        """Train to the end (or until dev stops improving); None when `stop` asked for an end, with the state
        saved.
        """
        self._restore(checkpoint)
        with deterministic():
            while not self._finished:
                if stop():
                    self._save(checkpoint)
                    return None
                listener.stepped(self._step + 1, self._one_step())
                if self._step in self.schedule.evaluate_at:
                    listener.evaluated(self._evaluate())
                    self._save(checkpoint)
        assert self._best_dev is not None, "the last step is always evaluated"
        return SeedResult(self._seed, self._best, self._best_dev, tuple(self._points), self._step)

    @property
    def _finished(self) -> bool:
        return self._step >= self.schedule.steps or self._stale >= self._settings.patience

    def _groups(self) -> list[dict[str, object]]:
        settings = self._settings
        rates: dict[Group, float | None] = {"prompt": settings.prompt_lr, "head": settings.head_lr}
        names: dict[Group, list[str]] = {"prompt": [], "head": []}
        for name in self._parameters:
            names[group_of(name)].append(name)
        return [
            {
                "params": [self._parameters[name] for name in members],
                "lr": rates[group],
                "base_lr": rates[group],
                "weight_decay": settings.weight_decay,
            }
            for group, members in names.items()
            if members
        ]

    def _one_step(self) -> float:
        epoch, at = divmod(self._step, self.schedule.steps_per_epoch)
        assert self._settings.batch_size is not None, "settings are resolved before training"
        batch = batches(self._train.lengths, self._settings.batch_size, self._seed, epoch)[at]
        rows = self._train.of_epoch(self._seed, epoch)
        number = self._gradients([rows[at] for at in batch], self._targets[batch])
        if not math.isfinite(number):
            raise TrainingFailedError(
                f"seed {self._seed}, step {self._step + 1}: the loss is {number}; "
                "use a smaller optimiser.prompt_lr"
            )
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = group["base_lr"] * self.schedule.factor(self._step)
        self._optimiser.step()
        self._step += 1
        self._loss_sum, self._loss_count = self._loss_sum + number, self._loss_count + 1
        self._update_average()
        return number

    def _gradients(self, rows: Sequence[Row], targets: Tensor) -> float:
        """Set every parameter's gradient to that of the batch's mean loss, and return the loss.

        Rows are independent, so each core takes some of them forward and back; their gradients are added in the
        order of the shares, which depends on the rows alone.
        """
        multi_label = self._manifest.multi_label
        parameters = list(self._parameters.values())

        def part(own: list[int]) -> tuple[float, tuple[Tensor, ...]]:
            prompt = self._backbone.bind(self._manifest, {**self._parameters, **self._frozen})
            scores = torch.stack(self._backbone.forward([rows[at] for at in own], [prompt] * len(own)))
            value = loss(scores, targets[own], multi_label=multi_label) * (len(own) / len(rows))
            return float(value.detach()), torch.autograd.grad(value, parameters)

        total = 0.0
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for _, (value, gradients) in self._backbone.share(part, rows):
            total += value
            for parameter, gradient in zip(parameters, gradients, strict=True):
                assert parameter.grad is not None, "set above"
                parameter.grad += gradient
        return total

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential average of the weights (Polyak & Juditsky 1992), short at the start where weights move
        far.
        """
        decay = min(self._settings.averaging or 0.0, self._step / (10 + self._step))
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(parameter.detach(), 1 - decay)

    def _evaluate(self) -> Point:
        prompt = self._backbone.bind(self._manifest, {**self._average, **self._frozen})
        scores = logits(self._backbone, prompt, self._dev.rows)
        labels, multi_label = self._manifest.labels, self._manifest.multi_label
        dev = score(scores, self._dev.targets, labels, multi_label=multi_label)
        if self._best_dev is None or (dev.accuracy, dev.macro_f1) > (
            self._best_dev.accuracy,
            self._best_dev.macro_f1,
        ):
            self._best = {name: tensor.clone() for name, tensor in self._average.items()}
            self._best_dev, self._stale = dev, 0
        else:
            self._stale += 1
        point = Point(
            epoch=self._step / self.schedule.steps_per_epoch,
            loss=self._loss_sum / max(1, self._loss_count),
            dev_accuracy=dev.accuracy,
            dev_macro_f1=dev.macro_f1,
        )
        self._loss_sum, self._loss_count = 0.0, 0
        self._points.append(point)
        return point

    def _save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach()
            tensors[f"average/{name}"] = self._average[name]
            for key, value in self._optimiser.state[parameter].items():
                tensors[f"optimiser/{key}/{name}"] = value
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        save_checkpoint(
            path,
            Checkpoint(
                tensors,
                {
                    "step": self._step,
                    "loss_sum": self._loss_sum,
                    "loss_count": self._loss_count,
                    "stale": self._stale,
                    "points": [asdict(point) for point in self._points],
                },
            ),
        )

    def _restore(self, path: Path) -> None:
        saved = load_checkpoint(path)
        if saved is None:
            return
        for name, parameter in self._parameters.items():
            parameter.data.copy_(saved.tensors[f"parameter/{name}"])
            self._average[name].copy_(saved.tensors[f"average/{name}"])
            state = {
                key.split("/")[1]: tensor
                for key, tensor in saved.tensors.items()
                if key.startswith("optimiser/") and key.split("/")[2] == name
            }
            if state:
                self._optimiser.state[parameter] = {
                    # AdamW keeps its step count on the host whatever the parameter's device.
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in state.items()
                }
        self._best = {
            name: saved.tensors[f"best/{name}"].to(self._backbone.device)
            for name in self._parameters
            if f"best/{name}" in saved.tensors
        }
        self._step, self._stale = saved.values["step"], saved.values["stale"]
        self._loss_sum, self._loss_count = saved.values["loss_sum"], saved.values["loss_count"]
        self._points = [Point(**point) for point in saved.values["points"]]
        if self._best:
            self._best_dev = self._score_best()

    def _score_best(self) -> Scores:
        prompt = self._backbone.bind(self._manifest, {**self._best, **self._frozen})
        scores = logits(self._backbone, prompt, self._dev.rows)
        return score(scores, self._dev.targets, self._manifest.labels, multi_label=self._manifest.multi_label)
