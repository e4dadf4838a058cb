"""Owns one prompt while it is learned: parameters, optimiser, weight average, schedule, early stop, best state.

A learner says which rows its next step wants, is given the gradient of its loss, and makes the step; whose rows
shared the forward with its own it never learns. Everything random is a function of (seed, epoch), so that it goes
through the same batches alone, among others, and after a restart. Knows no run folder and no table.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from pydantic import BaseModel
from torch import Tensor

from backbone import Backbone, Row
from prompt_store import Manifest
from trainer.config import OptimiserConfig
from trainer.errors import RunFolderError
from trainer.evaluation import Encoded, score, shared
from trainer.methods import Group, group_of
from trainer.ranks import ALONE, Ranks
from trainer.report import Point
from trainer.rows import TrainingRows
from trainer.schedule import Schedule, batches
from trainer.state import Checkpoint

Tensors = Mapping[str, Tensor]
# From what is trained to the tensors of each task's prompt file, keeping the autograd graph.
Fold = Callable[[Tensors], Sequence[Tensors]]


@dataclass(frozen=True)
class Task:
    """What a prompt is learned for: its manifest, its training rows, and the dev set that chooses."""

    manifest: Manifest
    train: TrainingRows
    dev: Encoded


@dataclass(frozen=True)
class Share:
    """One task's part in a learner's next step: rows, and targets [rows, labels]."""

    task: Task
    rows: Sequence[Row]
    targets: Tensor


@dataclass(frozen=True)
class Learned:
    """What a learner has come to at its best dev evaluation.

    `raw` are the tensors that were trained, in full precision: a warm start from them loses nothing. `prompts` are by
    task: tensors named as in the prompt file.
    """

    raw: dict[str, Tensor]
    prompts: tuple[dict[str, Tensor], ...]
    points: tuple[Point, ...]
    steps: int


class Learner:
    """One prompt's training; or one shared by several tasks, each of which brings a batch to every step."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        tasks: Sequence[Task],
        start: Tensors,
        settings: OptimiserConfig,
        *,
        seed: int,
        fold: Fold | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """`start` holds the tensors to train; `fold` makes of them each task's tensors as its prompt file names them
        (default: they are that already). `settings` are resolved. `ranks` share the scoring of dev. Raises
        IncompatiblePrompt for what the backbone cannot run: here it harms no other, in a step it would harm all.
        """
        assert settings.batch_size is not None, "settings are resolved before training"
        self.name, self.tasks, self.seed = name, tuple(tasks), seed
        self.batch_size = settings.batch_size * len(self.tasks)
        self.schedule = Schedule.of(settings, max(len(task.train) for task in self.tasks))
        self.failure: str | None = None
        self.rest_at: int | None = None  # one of the schedule's `evaluate_at`, where a sweep compares
        self._backbone, self._settings, self._fold = backbone, settings, fold or (lambda raw: (raw,))
        self._ranks = ranks
        self._targets = [torch.from_numpy(task.train.targets).to(backbone.device) for task in self.tasks]
        # Parameters are never coarser than float32, whatever the backbone computes in.
        precise = torch.promote_types(backbone.dtype, torch.float32)
        self._parameters = {
            name: tensor.detach()
            .to(backbone.device, precise)
            .clone(memory_format=torch.contiguous_format)
            .requires_grad_()
            for name, tensor in start.items()
        }
        # One kernel for a group's whole update: several times as fast on CPUs where a network is trained, and on GPUs
        # a few launches instead of several for each tensor.
        self._optimiser = torch.optim.AdamW(self._groups(), fused=True)
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._best: dict[str, Tensor] = {}
        self._best_dev: tuple[float, float] | None = None  # accuracy and macro-F1
        self.points: list[Point] = []
        self.step, self._loss_sum, self._loss_count, self._stale = 0, 0.0, 0, 0
        self._order: dict[int, tuple[int, list[list[int]]]] = {}  # by task: an epoch and its batches
        with torch.no_grad():
            for task, tensors in zip(self.tasks, self.folded(), strict=True):
                backbone.bind(task.manifest, tensors)

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to do: all steps made, dev no longer improving, or failed."""
        return (
            self.step >= self.schedule.steps
            or self._stale >= self._settings.patience
            or self.failure is not None
        )

    @property
    def resting(self) -> bool:
        """Whether it should make no step now: finished, or at the step where a sweep compares."""
        return self.finished or (self.rest_at is not None and self.step >= self.rest_at)

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates of the step that was made last, by group: prompt, head."""
        return {group["name"]: group["lr"] for group in self._optimiser.param_groups}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The tensors that are trained, by name."""
        return self._parameters

    def shares(self) -> list[Share]:
        """The rows and targets of the next step, one share for each task."""
        result = []
        for at, task in enumerate(self.tasks):
            assert self._settings.batch_size is not None, "checked in the constructor"
            per_epoch = math.ceil(len(task.train) / self._settings.batch_size)
            epoch, nth = divmod(self.step, per_epoch)
            if at not in self._order or self._order[at][0] != epoch:
                order = batches(task.train.lengths, self._settings.batch_size, self.seed, epoch)
                self._order[at] = (epoch, order)
            batch = self._order[at][1][nth]
            result.append(Share(task, task.train.batch(batch, self.seed, epoch), self._targets[at][batch]))
        return result

    def folded(self) -> list[Tensors]:
        """Each task's tensors as its prompt file names them, with the graph back to the parameters."""
        return list(self._fold(self._parameters))

    def advance(self, loss: float, gradients: Sequence[Tensor | None]) -> None:
        """Make a step: `loss` is the step's, `gradients` are its with respect to `parameters`, in their order."""
        if not math.isfinite(loss):
            self._fail(self.step + 1, f"the loss is {loss}")
            return
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            # The fused kernel reads a gradient as if it lay in memory as its parameter does, and says nothing.
            parameter.grad = None if gradient is None else gradient.contiguous()
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip_norm))
        if not math.isfinite(norm):  # of a finite loss; clipped by it, all weights would be NaN
            self._fail(self.step + 1, f"the gradient's norm is {norm}")
            return
        for group in self._optimiser.param_groups:
            group["lr"] = group["base_lr"] * self.schedule.factor(self.step)
        self._optimiser.step()
        self.step += 1
        self._loss_sum, self._loss_count = self._loss_sum + loss, self._loss_count + 1
        self._update_average()

    def give_up(self, reason: str) -> None:
        """End it where it is: nobody wants what it learns, for this reason."""
        self.failure = self.failure or reason

    def _fail(self, step: int, what: str) -> None:
        self.failure = f"{self.name}, step {step}: {what}; use a smaller optimiser.prompt_lr" + (
            " or optimiser.weight_decay" if self._settings.weight_decay else ""
        )

    @property
    def evaluates_now(self) -> bool:
        """Whether the step just made is one after which dev is scored."""
        return self.step in self.schedule.evaluate_at

    def evaluate(self) -> Point | None:
        """Score the weight average on dev, and keep it if it is the best so far; None where that fails."""
        dev = self._score(self._average)
        if dev is None:  # the largest of numbers that are none would be the first label, and right by luck
            self._fail(self.step, "a score on dev is no finite number")
            return None
        accuracy, macro_f1 = dev
        if self._best_dev is None or dev > self._best_dev:
            self._best = {name: tensor.clone() for name, tensor in self._average.items()}
            self._best_dev, self._stale = dev, 0
        else:
            self._stale += 1
        point = Point(
            epoch=self.step / self.schedule.steps_per_epoch,
            loss=self._loss_sum / max(1, self._loss_count),
            dev_accuracy=accuracy,
            dev_macro_f1=macro_f1,
        )
        self._loss_sum, self._loss_count = 0.0, 0
        self.points.append(point)
        return point

    def learned(self) -> Learned:
        """What it has come to. At least one evaluation has been made."""
        assert self._best_dev is not None, "the last step is always evaluated"
        with torch.no_grad():
            prompts = tuple(
                {name: tensor.clone() for name, tensor in tensors.items()}
                for tensors in self._fold(self._best)
            )
        return Learned(dict(self._best), prompts, tuple(self.points), self.step)

    def state(self) -> Checkpoint:
        """Everything that going on needs, bit for bit."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach()
            tensors[f"average/{name}"] = self._average[name]
            for key, value in self._optimiser.state[parameter].items():
                tensors[f"optimiser/{key}/{name}"] = value
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        values = {
            "of": self._settled,
            "best_dev": self._best_dev,
            "step": self.step,
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
            "stale": self._stale,
            "failure": self.failure,
            "points": [asdict(point) for point in self.points],
        }
        return Checkpoint(tensors, values)

    def restore(self, saved: Checkpoint) -> None:
        """Go back to a `state`. Raises RunFolderError for one of other settings: it is nothing to go on from."""
        if saved.values.get("of") != self._settled:
            other = "was saved with other settings, or by another version of promptmux"
            raise RunFolderError(f"{self.name} {other}: put these back, or start a new run")
        for name, parameter in self._parameters.items():
            parameter.data.copy_(saved.tensors[f"parameter/{name}"])
            self._average[name].copy_(saved.tensors[f"average/{name}"])
            state = {
                key.split("/")[1]: tensor
                for key, tensor in saved.tensors.items()
                if key.startswith("optimiser/") and key.split("/", 2)[2] == name
            }
            if state:
                self._optimiser.state[parameter] = {
                    key: value.to(parameter.device) for key, value in state.items()
                }
        self._best = {
            name: saved.tensors[f"best/{name}"].to(self._backbone.device)
            for name in self._parameters
            if f"best/{name}" in saved.tensors
        }
        self.step, self._stale = saved.values["step"], saved.values["stale"]
        self._loss_sum, self._loss_count = saved.values["loss_sum"], saved.values["loss_count"]
        self.failure = saved.values["failure"]
        self.points = [Point(**point) for point in saved.values["points"]]
        self._best_dev = (best := saved.values["best_dev"]) and (best[0], best[1])

    @cached_property
    def _settled(self) -> str:
        """A digest of what may not change on the way. What is at its default is not in it: new settings may come."""
        parts: list[BaseModel] = [self._settings, *(task.manifest for task in self.tasks)]
        plain = [part.model_dump(mode="json", exclude={"backbone"}, exclude_defaults=True) for part in parts]
        shapes = {name: list(parameter.shape) for name, parameter in self._parameters.items()}
        return hashlib.sha256(json.dumps([self.seed, shapes, plain]).encode()).hexdigest()

    def _groups(self) -> list[dict[str, object]]:
        settings = self._settings
        rates: dict[Group, float | None] = {"prompt": settings.prompt_lr, "head": settings.head_lr}
        names: dict[Group, list[str]] = {"prompt": [], "head": []}
        for name in self._parameters:
            names[group_of(name)].append(name)
        return [
            {
                "name": group,
                "params": [self._parameters[name] for name in members],
                "lr": rates[group],
                "base_lr": rates[group],
                "weight_decay": settings.weight_decay,
            }
            for group, members in names.items()
            if members
        ]

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential average of the weights (Polyak & Juditsky 1992), short at the start where weights move far."""
        decay = min(self._settings.averaging or 0.0, self.step / (10 + self.step))
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def _score(self, raw: Tensors) -> tuple[float, float] | None:
        """Accuracy and macro-F1 on dev, averaged over tasks; None if a logit is not finite."""
        scores = []
        for task, tensors in zip(self.tasks, self._fold(raw), strict=True):
            manifest = task.manifest
            values = shared(self._backbone, self._ranks, manifest, tensors, task.dev.rows)
            if not bool(values.isfinite().all()):
                return None
            scores.append(score(values, task.dev.targets, manifest.labels, multi_label=manifest.multi_label))
        count = len(scores)
        return sum(s.accuracy for s in scores) / count, sum(s.macro_f1 for s in scores) / count
