"""Owns the comparison with full fine-tuning: every weight of the backbone is trained, and nothing is published.

    python -m trainer.reference --train train.jsonl --dev dev.jsonl --test test.jsonl [--output metrics.json]

It says how much of the distance from a linear head to a model of one's own a prompt recovers. Rows, pooling and
decisions are those of prompts, so that the weights are the only difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from backbone import Row, load_backbone
from trainer.config import TrainConfig, load_config
from trainer.data import TaskData, load_examples
from trainer.errors import TrainerError
from trainer.evaluation import Encoded, encode, features, logits, loss, score
from trainer.head_only import fit_probe
from trainer.loop import deterministic
from trainer.methods import build_manifest, resolve
from trainer.report import TableRow, results_table, write_metrics
from trainer.schedule import Schedule, batches
from trainer.scores import Scores

WEIGHT_DECAY = 0.01


class FineTuning:
    """One seed: a fresh backbone in float32, a linear head that starts as the linear probe, and all weights free."""

    def __init__(self, config: TrainConfig, data: TaskData, *, lr: float, seed: int) -> None:
        self._backbone = load_backbone(config.backbone, device=config.device, dtype="float32", kernels="off")
        self._config = resolve(config, data, self._backbone)
        self._data, self._seed, self._lr = data, seed, lr
        self._manifest = build_manifest(self._config, data, self._backbone)
        encoder = self._backbone.row_encoder(self._manifest)
        self._train, self._dev, self._test = (
            encode(encoder, examples, data.labels)
            for examples in (data.train, data.dev, data.test or data.dev)
        )
        self._head = {name: tensor.requires_grad_() for name, tensor in self._probe().items()}
        self._weights = self._backbone.weights()
        for weight in self._weights:
            weight.requires_grad_()

    def run(self, console: Console) -> tuple[Scores, Scores]:
        """Train, and return dev and test scores of the last step."""
        settings = self._config.optimiser
        schedule = Schedule.of(settings, len(self._train))
        parameters = [*self._head.values(), *self._weights]
        optimiser = torch.optim.AdamW(parameters, lr=self._lr, weight_decay=WEIGHT_DECAY)
        targets = torch.from_numpy(self._train.targets).to(self._backbone.device)
        lengths = [len(row) for row in self._train.rows]
        with deterministic():
            for step in range(schedule.steps):
                epoch, at = divmod(step, schedule.steps_per_epoch)
                batch = batches(lengths, settings.batch_size or 1, self._seed, epoch)[at]
                value, gradients = self._gradients(
                    [self._train.rows[i] for i in batch], targets[batch], parameters
                )
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimiser.param_groups[0]["lr"] = self._lr * schedule.factor(step)
                optimiser.step()
                if step + 1 in schedule.evaluate_at:
                    dev = self._score(self._dev)
                    console.print(
                        f"seed {self._seed}: epoch {(step + 1) / schedule.steps_per_epoch:.2f}, "
                        f"loss {value:.3f}, dev {100 * dev.accuracy:.1f} %",
                        highlight=False,
                    )
        return self._score(self._dev), self._score(self._test)

    def _probe(self) -> dict[str, Tensor]:
        labels, hidden = len(self._data.labels), self._backbone.shape.hidden_size
        head = {"head.0.weight": torch.zeros(labels, hidden), "head.0.bias": torch.zeros(labels)}
        bare = self._backbone.bind(self._manifest, head)
        train, dev = (features(self._backbone, bare, split.rows) for split in (self._train, self._dev))
        return fit_probe(
            train,
            self._train.targets,
            dev,
            self._dev.targets,
            self._data.labels,
            multi_label=self._data.multi_label,
        ).tensors()

    def _gradients(
        self, rows: Sequence[Row], targets: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        def share(own: list[int]) -> tuple[float, tuple[Tensor, ...]]:
            # Matrix products in bfloat16, weights and their updates in float32.
            with torch.autocast(self._backbone.device.type, dtype=torch.bfloat16):
                prompt = self._backbone.bind(self._manifest, self._head)
                scores = torch.stack(self._backbone.forward([rows[at] for at in own], [prompt] * len(own)))
            value = loss(scores.float(), targets[own], multi_label=self._data.multi_label) * (
                len(own) / len(rows)
            )
            return float(value.detach()), torch.autograd.grad(value, parameters, materialize_grads=True)

        shares = [result for _, result in self._backbone.share(share, rows)]
        gradients = list(shares[0][1])
        for _, others in shares[1:]:
            gradients = [one + other for one, other in zip(gradients, others, strict=True)]
        return sum(value for value, _ in shares), gradients

    def _score(self, split: Encoded) -> Scores:
        scores = logits(self._backbone, self._backbone.bind(self._manifest, self._head), split.rows)
        return score(scores, split.targets, self._data.labels, multi_label=self._data.multi_label)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.reference", description="Full fine-tuning, for comparison."
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev")
    parser.add_argument("--test")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="a JSON file for the scores")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        config = load_config(
            None,
            {
                "task_id": "reference", "method": "head-only", "output": "unused", "backbone": given.backbone,
                "data.train": given.train, "data.dev": given.dev, "data.test": given.test,
                "optimiser.epochs": given.epochs, "optimiser.batch_size": given.batch_size, "optimiser.evaluations": 4,
            },
        )  # fmt: skip
        began = time.monotonic()
        data = load_examples(config)
        runs = [FineTuning(config, data, lr=given.lr, seed=seed).run(console) for seed in given.seeds]
    except TrainerError as error:
        console.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        return error.exit_code
    for split, at in (("dev", 0), ("test" if data.test else "dev", 1)):
        row = TableRow("all weights", tuple(run[at] for run in runs))
        console.print(results_table("full fine-tuning", split, [row]))
    if given.output is not None:
        metrics = {
            "reported_split": split,
            "summary": {"full fine-tuning": row.summary()},
            "seeds": [
                {"seed": seed, "dev": dev.as_dict(), split: test.as_dict()}
                for seed, (dev, test) in zip(given.seeds, runs, strict=True)
            ],
            "settings": {"lr": given.lr, "epochs": given.epochs, "batch_size": given.batch_size},
            "data": {"sizes": data.sizes(), "digests": data.digests()},
            "seconds": round(time.monotonic() - began, 1),
        }
        write_metrics(given.output, metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
