"""Owns the training of every weight of a model, for comparison: one learning rate, one seed, scores and nothing else.

The model is loaded for this alone and thrown away with what it learned. Rows, pooling and decisions are those of
prompts; words are not left out, and weights not averaged, as they are for prompts. Knows no files and no tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from backbone import Row, load_backbone
from prompt_store import Manifest, VerbalizerHead
from trainer.config import OptimiserConfig
from trainer.data import TaskData
from trainer.deterministic import deterministic
from trainer.errors import ConfigError, TrainingFailedError
from trainer.evaluation import EVALUATION_BATCH, Encoded, by_length, encode, loss, score
from trainer.report import Point
from trainer.schedule import Schedule, batches
from trainer.scores import Scores

# A set that three epochs go through in fewer steps is gone through more often, until this many are made.
EPOCHS, MIN_STEPS = 3, 1000


@dataclass(frozen=True)
class Recipe:
    """How all weights are trained: AdamW (arXiv 1711.05101), linear warm-up, linear decay, as BERT was fine-tuned
    (Devlin et al. 2019, arXiv 1810.04805, appendix A.3, and its code): 3 epochs in batches of 32, only matrices decay.

    Three epochs leave small sets such as RTE undertrained (Mosbach et al. 2021, arXiv 2006.04884): without `epochs`
    these get at least 1,000 steps, which is also what LM-BFF gives its few-shot sets. Of several `learning_rates` dev
    chooses one. `patience` counts evaluations on dev without a better one.
    """

    learning_rates: tuple[float, ...] = (5e-5,)
    epochs: int | None = None
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    evaluations: int = 8
    patience: int = 6

    def __post_init__(self) -> None:
        """Refuse what no training can be made of. Raises ConfigError."""
        rates = self.learning_rates
        if not rates or len(set(rates)) != len(rates) or not all(0 < rate < 1 for rate in rates):
            raise ConfigError("lr: expected different learning rates between 0 and 1, such as 5e-5,2e-5")
        if self.batch_size < 1 or (self.epochs is not None and self.epochs < 1):
            raise ConfigError("epochs and batch size: expected 1 or more")

    def schedule(self, examples: int) -> Schedule:
        """When what happens, for a training set of this size."""
        per_epoch = math.ceil(examples / self.batch_size)
        return Schedule.of(
            OptimiserConfig(
                epochs=self.epochs or max(EPOCHS, math.ceil(MIN_STEPS / per_epoch)),
                batch_size=self.batch_size,
                warmup=self.warmup,
                evaluations=self.evaluations,
            ),
            examples,
        )

    def as_dict(self) -> dict[str, object]:
        """Plain data for metrics.json, without the learning rates, which are named where they were used."""
        return {key: value for key, value in asdict(self).items() if key != "learning_rates"}


@dataclass(frozen=True)
class Start:
    """Where a fine-tuning begins. `head` is trained with the weights, `prompt` only takes part.

    Both hold tensors named as in a prompt file. A verbalizer's head is the language model's own: it is trained, too.
    """

    manifest: Manifest
    head: Mapping[str, Tensor] = field(default_factory=dict)
    prompt: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuned:
    """The scores of the best dev evaluation, of the same weights on test (dev where there is no test set), and how it
    came there.
    """

    dev: Scores
    test: Scores
    points: tuple[Point, ...]
    steps: int


class Listener(Protocol):
    """What a caller may want to know while a model is trained; the progress bar is one."""

    def stepped(self, step: int, loss: float) -> None:
        """A step was made; `step` counts from 1, `loss` is its batch's."""

    def evaluated(self, point: Point) -> None:
        """The dev set was scored."""


class FineTuning:
    """One learning rate and one seed: a fresh backbone in float32, all of its weights free."""

    def __init__(
        self,
        backbone: str,
        device: str,
        data: TaskData,
        start: Start,
        recipe: Recipe,
        *,
        lr: float,
        seed: int,
    ) -> None:
        """Load the model and tokenise the examples; `backbone` and `device` as `load_backbone` takes them."""
        self._backbone = load_backbone(backbone, device=device, dtype="float32", kernels="off")
        self._manifest, self._data, self._recipe, self._lr, self._seed = (
            start.manifest,
            data,
            recipe,
            lr,
            seed,
        )
        encoder = self._backbone.row_encoder(start.manifest)
        self._splits = {
            name: encode(encoder, examples, data.labels)
            for name, examples in (("train", data.train), ("dev", data.dev), ("test", data.test))
        }
        self._order: tuple[int, list[list[int]]] = (-1, [])  # an epoch and its batches
        to = self._backbone.device
        self._prompt = {name: tensor.to(to) for name, tensor in start.prompt.items()}
        self._head = {name: tensor.detach().clone().to(to) for name, tensor in start.head.items()}
        speaks = isinstance(start.manifest.head, VerbalizerHead)
        self._parameters: list[Tensor] = [*self._head.values(), *self._backbone.weights(lm_head=speaks)]
        for parameter in self._parameters:
            parameter.requires_grad_()
        self.schedule = recipe.schedule(len(data.train))

    def run(self, *, listener: Listener, stop: Callable[[], bool] = lambda: False) -> Tuned | None:
        """Train to the end (or until dev stops improving); None when `stop` asked for an end."""
        # One pass over all weights for each step, where AdamW as it is written down takes nine.
        optimiser = torch.optim.AdamW(self._groups(), lr=self._lr, fused=True)
        best: tuple[Scores, list[Tensor]] | None = None
        points: list[Point] = []
        total, count, stale, step = 0.0, 0, 0, 0
        with deterministic():
            while step < self.schedule.steps and stale < self._recipe.patience:
                if stop():
                    return None
                number = self._one_step(step, optimiser)
                step, total, count = step + 1, total + number, count + 1
                listener.stepped(step, number)
                if step not in self.schedule.evaluate_at:
                    continue
                dev = self._score("dev")
                points.append(
                    Point(step / self.schedule.steps_per_epoch, total / count, dev.accuracy, dev.macro_f1)
                )
                listener.evaluated(points[-1])
                total, count, stale = 0.0, 0, stale + 1
                if best is None or (dev.accuracy, dev.macro_f1) > (best[0].accuracy, best[0].macro_f1):
                    best, stale = (dev, [p.detach().clone() for p in self._parameters]), 0
        assert best is not None, "the last step is always evaluated"
        with torch.no_grad():
            for parameter, value in zip(self._parameters, best[1], strict=True):
                parameter.copy_(value)
        test = self._score("test") if self._data.test else best[0]
        return Tuned(best[0], test, tuple(points), step)

    def _groups(self) -> list[dict[str, object]]:
        """Matrices decay; biases and norms, which have one dimension, do not (BERT's recipe)."""
        matrices = [p for p in self._parameters if p.dim() > 1]
        vectors = [p for p in self._parameters if p.dim() <= 1]
        return [
            {"params": matrices, "weight_decay": self._recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]

    def _one_step(self, step: int, optimiser: torch.optim.Optimizer) -> float:
        train = self._splits["train"]
        epoch, at = divmod(step, self.schedule.steps_per_epoch)
        if self._order[0] != epoch:
            lengths = [len(row) for row in train.rows]
            self._order = (epoch, batches(lengths, self._recipe.batch_size, self._seed, epoch))
        batch = self._order[1][at]
        targets = torch.from_numpy(train.targets[batch]).to(self._backbone.device)
        number = self._gradients([train.rows[i] for i in batch], targets)
        if not math.isfinite(number):
            raise TrainingFailedError(
                f"seed {self._seed}, step {step + 1}: the loss is {number}; use a smaller learning rate"
            )
        torch.nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip_norm)
        for group in optimiser.param_groups:
            group["lr"] = self._lr * self.schedule.factor(step)
        optimiser.step()
        return number

    def _forward(self, rows: Sequence[Row]) -> Tensor:
        """Logits [rows, labels], float32: matrix products in bfloat16, weights and their updates in float32."""
        with torch.autocast(self._backbone.device.type, dtype=torch.bfloat16):
            prompt = self._backbone.bind(self._manifest, {**self._prompt, **self._head})
            return torch.stack(self._backbone.forward(rows, [prompt] * len(rows))).float()

    def _gradients(self, rows: Sequence[Row], targets: Tensor) -> float:
        """Set every parameter's gradient to that of the batch's mean loss, and return the loss."""

        def share(own: list[int]) -> tuple[float, tuple[Tensor, ...]]:
            logits = self._forward([rows[at] for at in own])
            value = loss(logits, targets[own], multi_label=self._data.multi_label) * (len(own) / len(rows))
            gradients = torch.autograd.grad(value, self._parameters, materialize_grads=True)
            return float(value.detach()), gradients

        shares = [result for _, result in self._backbone.share(share, rows)]
        for at, parameter in enumerate(self._parameters):
            own = [gradients[at] for _, gradients in shares]
            if own[0].is_sparse:  # of words: gathered in the memory of the step before
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.zero_()
                for gradient in own:
                    parameter.grad.add_(gradient)
            else:
                parameter.grad = sum(own[1:], own[0])
        return sum(value for value, _ in shares)

    def _score(self, split: str) -> Scores:
        encoded: Encoded = self._splits[split]
        result = torch.empty(len(encoded), len(self._data.labels))
        for batch in by_length(encoded.rows, EVALUATION_BATCH):

            def share(own: list[int], batch: list[int] = batch) -> Tensor:
                with torch.no_grad():  # gradients are on in every new thread
                    return self._forward([encoded.rows[batch[at]] for at in own]).cpu()

            for own, values in self._backbone.share(share, [encoded.rows[at] for at in batch]):
                result[[batch[at] for at in own]] = values
        return score(result, encoded.targets, self._data.labels, multi_label=self._data.multi_label)
