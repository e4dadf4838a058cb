"""Owns one training run from examples to a run folder: head-only reference, every seed, the prompt files, the
report.

Knows the order of things and nothing of how each is done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from backbone import Backbone, BackboneError, load_backbone
from prompt_store import Manifest, parse_template
from trainer.config import TrainConfig
from trainer.data import load_examples
from trainer.errors import ConfigError, RunFolderError, TrainingInterruptedError
from trainer.evaluation import Encoded, encode, features, score
from trainer.head_only import fit_probe, random_head
from trainer.init import Initialiser
from trainer.interrupt import StopRequest, stop_on_signals
from trainer.loop import SeedTraining
from trainer.methods import build_manifest, label_texts, resolve, trains_prompt
from trainer.outcome import Outcome, Reference
from trainer.progress import TrainingProgress
from trainer.prompt_file import finish
from trainer.report import (
    Point,
    TableRow,
)
from trainer.rows import TrainingRows
from trainer.run_folder import RunFolder


@dataclass(frozen=True)
class RunResult:
    """A finished run. `prompt` is the file to publish, `version` its SHA-256; `rows` are the table's."""

    folder: Path
    prompt: Path
    version: str
    best_seed: int | None
    rows: tuple[TableRow, ...]


def train(config: TrainConfig, *, console: Console) -> RunResult:
    """Run a configuration in a new run folder.

    Raises TrainerError: bad settings or data (exit code 2), a folder in use, or TrainingInterruptedError
    after Ctrl-C or SIGTERM, which leaves a run that `resume` finishes.
    """
    return _Run(config, console).go(new=True)


def resume(folder: Path, *, console: Console) -> RunResult:
    """Go on with a run that was interrupted or killed; it ends as it would have ended. Raises as `train`."""
    config = RunFolder(folder).config()
    if RunFolder(folder).metrics.exists():
        raise RunFolderError(f"{folder}: this run is finished; there is nothing to resume")
    return _Run(config, console).go(new=False)


class _Run:
    def __init__(self, config: TrainConfig, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._folder = RunFolder(Path(config.output))
        self._data = load_examples(config)
        self._backbone = _load(config)
        self._config = resolve(config, self._data, self._backbone)
        self._manifest = build_manifest(self._config, self._data, self._backbone)

    def go(self, *, new: bool) -> RunResult:
        """Everything, in order."""
        if new:
            self._folder.create(_with_absolute_paths(self._config))
        identity = {"the backbone": self._backbone.fingerprint} | {
            f"the {name} set": digest for name, digest in self._data.digests().items()
        }
        self._folder.claim(identity)
        self._describe()
        with stop_on_signals() as stop:
            reference = self._reference(stop)
            splits = self._encode(self._manifest)
            curves: dict[int, tuple[Point, ...]] = {}
            learned: dict[int | None, Mapping[str, Tensor]] = {}
            if trains_prompt(self._config.method):
                learned, curves = self._train_seeds(reference, splits, stop)
            elif self._config.method == "head-only":
                learned = {None: reference.probe.tensors()}
            else:
                learned = {None: self._untrained()}
            files = {
                seed: finish(self._config, self._data, self._backbone, self._manifest, tensors, seed, splits)
                for seed, tensors in learned.items()
            }
            outcome = Outcome(self._config, self._data, self._backbone.name, reference, files, curves)
            table = outcome.write(self._folder, seconds=time.monotonic() - self._began)
        self._console.print(table)
        for note in outcome.notes:
            self._say(f"note: {note}")
        self._say(f"prompt file: {self._folder.prompt} (version {outcome.version[:12]})")
        return RunResult(
            self._folder.root, self._folder.prompt, outcome.version, outcome.best_seed, outcome.rows
        )

    def _describe(self) -> None:
        sizes = self._data.sizes()
        self._say(
            f"{self._config.task_id}: {self._config.method} on {self._backbone.name} "
            f"({self._backbone.dtype_name}, {self._backbone.device}); {len(self._data.labels)} labels; "
            + ", ".join(f"{size} {name}" for name, size in sizes.items())
        )
        for note in self._data.notes:
            self._say(f"note: {note}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _encode(self, manifest: Manifest) -> dict[str, Encoded]:
        encoder, data = self._backbone.row_encoder(manifest), self._data
        sets = {"train": data.train, "dev": data.dev, "test": data.test}
        return {name: encode(encoder, examples, data.labels) for name, examples in sets.items()}

    def _reference(self, stop: StopRequest) -> Reference:
        """Fit the linear probe on features that are computed once."""
        manifest = build_manifest(self._config, self._data, self._backbone, method="head-only")
        splits = self._encode(manifest)
        names = ("train", "dev", "test")
        bare = self._backbone.bind(manifest, _zero_head(manifest))
        states: dict[str, Tensor] = {}
        for name in names:
            states[name] = features(self._backbone, bare, splits[name].rows)
            self._stop_here(stop)
        labels, multi_label = self._data.labels, self._data.multi_label
        probe = fit_probe(
            states["train"],
            splits["train"].targets,
            states["dev"],
            splits["dev"].targets,
            labels,
            multi_label=multi_label,
        )
        reported = "test" if self._data.test else "dev"
        test = score(
            probe.logits(states[reported]), splits[reported].targets, labels, multi_label=multi_label
        )
        self._say(f"head only: dev {100 * probe.dev.accuracy:.1f} %")
        return Reference(probe, test)

    def _untrained(self) -> dict[str, Tensor]:
        if self._config.head.type != "label_embeddings":
            return {}
        return {
            "verbalizer.label_embeddings": torch.from_numpy(
                self._backbone.encode_labels(label_texts(self._config))
            )
        }

    def _start(self, seed: int, initialiser: Initialiser, reference: Reference) -> dict[str, Tensor]:
        prompt = self._config.prompt
        start = self._untrained()
        if self._config.head.type == "linear":
            start = reference.probe.tensors()
            if self._config.head.start == "random":
                start = random_head(start, seed)
        if self._config.method == "prompt-tuning":
            template = parse_template(prompt.template or "")
            return start | {"soft_prompt": initialiser.soft_prompt(template, prompt.init or (), seed)}
        keys, values = initialiser.prefix(prompt.init or (), prompt.num_virtual_tokens or 1, seed)
        stack = self._backbone.prefix_stack
        return start | {f"prefix.{stack}.key": keys, f"prefix.{stack}.value": values}

    def _train_seeds(
        self, reference: Reference, splits: Mapping[str, Encoded], stop: StopRequest
    ) -> tuple[dict[int | None, Mapping[str, Tensor]], dict[int, tuple[Point, ...]]]:
        config = self._config
        train = TrainingRows(
            self._backbone.row_encoder(self._manifest),
            self._data.train,
            self._data.labels,
            word_dropout=config.optimiser.word_dropout or 0.0,
        )
        initialiser = Initialiser(
            self._backbone,
            train.whole,
            task_text=config.prompt.task_text,
            label_texts=label_texts(config),
        )
        learned: dict[int | None, Mapping[str, Tensor]] = {}
        curves: dict[int, tuple[Point, ...]] = {}
        with TrainingProgress(self._console) as progress:
            for seed in config.seeds:
                training = SeedTraining(
                    self._backbone,
                    self._manifest,
                    self._start(seed, initialiser, reference),
                    config.optimiser,
                    train,
                    splits["dev"],
                    seed=seed,
                )
                bar = progress.seed(seed, training.schedule.steps)
                result = training.run(checkpoint=self._folder.checkpoint(seed), listener=bar, stop=stop)
                if result is None:
                    self._stop_here(stop)
                    raise AssertionError("training ends early only when a signal asked for it")
                learned[seed], curves[seed] = result.tensors, result.points
        return learned, curves

    def _stop_here(self, stop: StopRequest) -> None:
        if stop.signal_number is not None:
            raise TrainingInterruptedError(
                f"interrupted; the run is saved. Go on with: {self._folder.resume_command()}",
                signal_number=stop.signal_number,
            )


def _load(config: TrainConfig) -> Backbone:
    try:
        return load_backbone(config.backbone, device=config.device, dtype=config.dtype)
    except BackboneError as error:
        raise ConfigError(f"backbone: {error}") from None


def _zero_head(manifest: Manifest) -> dict[str, Tensor]:
    """Any head will do where only features are read."""
    labels, hidden = len(manifest.labels), manifest.backbone.hidden_size
    return {"head.0.weight": torch.zeros(labels, hidden), "head.0.bias": torch.zeros(labels)}


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The run folder's config.toml must mean the same from every working folder."""
    paths = {
        name: str(Path(path).resolve())
        for name in ("train", "dev", "test")
        if (path := getattr(config.data, name)) is not None and not path.startswith("hf:")
    }
    return config.model_copy(
        update={"data": config.data.model_copy(update=paths), "output": str(Path(config.output).resolve())}
    )
