"""Owns the comparison that a prompt is judged by: what the same model does without a prompt, or with weights of its
own.

    majority            always the commonest answer
    zero-shot           a hard prompt, nothing trained
    head-only           a linear head on frozen features
    full-fine-tuning    every weight, bare text, a linear head that starts as the probe
    fixed-prompt        every weight, and a prompt that is not trained

Scores are all that is left of it: the tuned models are thrown away, and there is no prompt file to publish. Dev chooses
(the evaluation within a run, the learning rate), test is reported. Knows the order of things and nothing of how each is
done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from backbone import Backbone, BackboneError, load_backbone
from prompt_store import Prompt
from trainer.config import OptimiserConfig, TrainConfig
from trainer.data import TaskData, load_examples
from trainer.errors import ConfigError, TrainingFailedError, TrainingInterruptedError
from trainer.evaluation import encode, logits, score
from trainer.fine_tuning import FineTuning, Recipe, Start
from trainer.fixed_prompt import Probed, bare, from_file, hard, read_prompt, zero_shot
from trainer.interrupt import StopRequest, stop_on_signals
from trainer.progress import TrainingProgress
from trainer.reference_folder import Cell, ReferenceFolder
from trainer.reference_report import NAMES, ReferenceRow, figures, tuned_row, untrained_row
from trainer.report import TableRow, plain_text, results_table, write_metrics
from trainer.scores import Scores, majority, one_hot
from trainer.state import write_atomically

Strategy = Literal["head-only", "full-fine-tuning", "fixed-prompt"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
# Settings of a run that nothing here looks at.
_WITHOUT_EFFECT = {
    "": ("ensemble", "calibrate", "golden", "log_with", "rows_at_once"),
    "prompt": (
        "num_virtual_tokens", "init", "init_from", "init_version", "reparameterisation", "encoder_hidden_size"
    ),
    "head": ("type", "start"),
}  # fmt: skip


def run_references(
    config: TrainConfig,
    strategies: Sequence[Strategy] = STRATEGIES,
    seeds: Sequence[int] | None = None,
    *,
    console: Console,
    folder: Path,
    recipe: Recipe | None = None,
    prompt: Path | None = None,
) -> Mapping[str, ReferenceRow]:
    """Score the reference strategies on a task; rows by "majority", "zero-shot" and the strategies' names.

    Of `config` count the data and labels, the backbone with device and dtype, template, task text, pooling and length
    of texts, and the head's words, descriptions, aggregate and scale; of what else somebody chose there, a note says
    that it does not. `prompt` is a trained prompt file for "fixed-prompt". What is finished is kept in `folder`, and
    the same call goes on from there. Raises TrainerError as `trainer.train` does.
    """
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown or not strategies:
        raise ConfigError(f"strategy: {', '.join(unknown) or 'none'}; there are {', '.join(STRATEGIES)}")
    chosen = tuple(name for name in STRATEGIES if name in strategies)
    return _References(
        config, chosen, tuple(seeds or config.seeds), console, folder, recipe or Recipe(), prompt
    ).go()


class _References:
    def __init__(
        self,
        config: TrainConfig,
        strategies: tuple[Strategy, ...],
        seeds: tuple[int, ...],
        console: Console,
        folder: Path,
        recipe: Recipe,
        prompt: Path | None,
    ) -> None:
        self._prompt: Prompt | None = None
        self._prompt_version: str | None = None
        if prompt is not None:
            self._prompt, self._prompt_version = read_prompt(prompt)
            if "fixed-prompt" not in strategies:
                raise ConfigError("prompt: a prompt file is for the strategy fixed-prompt")
            manifest = self._prompt.manifest
            config = config.model_copy(
                update={"labels": manifest.labels, "multi_label": manifest.multi_label}
            )
        self._config = config.model_copy(update={"method": "head-only"})
        self._strategies, self._seeds, self._recipe = strategies, seeds, recipe
        self._console, self._folder = console, ReferenceFolder(folder)
        self._data: TaskData = load_examples(self._config)
        self._split = "test" if self._data.test else "dev"

    @cached_property
    def _backbone(self) -> Backbone:
        try:
            return load_backbone(self._config.backbone, device=self._config.device, dtype=self._config.dtype)
        except BackboneError as error:
            raise ConfigError(f"backbone: {error}") from None

    @cached_property
    def _bare(self) -> Probed:
        return bare(self._config, self._data, self._backbone)

    @cached_property
    def _fixed(self) -> Start:
        if self._prompt is not None:
            return from_file(self._prompt, self._data, self._backbone)
        start, notes = hard(self._config, self._data, self._backbone)
        for note in notes:
            self._say(f"note: {note}")
        return start

    def go(self) -> Mapping[str, ReferenceRow]:
        """Everything, in order."""
        self._folder.refuse_taken()  # before a backbone is loaded for it
        settings = self._settings()
        self._lock = self._folder.claim(settings)
        self._describe()
        with stop_on_signals() as stop:
            rows = {"majority": untrained_row("majority", self._majority())}
            for name, measured in (("zero-shot", self._zero_shot), ("head-only", self._head_only)):
                if name == "zero-shot" or name in self._strategies:
                    rows[name] = untrained_row(name, self._kept(name, measured))
                self._stop_here(stop)
            cells: list[Cell] = []
            with TrainingProgress(self._console) as progress:
                for strategy in self._strategies:
                    if strategy != "head-only":
                        own = self._all_tuned(strategy, progress, stop)
                        left = [lr for lr in self._rates if any(cell.lr == lr for cell in own)]
                        rows[strategy], note = tuned_row(strategy, own, left)
                        for line in note:
                            self._say(line)
                        cells += own
        ordered = {name: rows[name] for name in NAMES if name in rows}
        self._write(ordered, cells, settings)
        return ordered

    @property
    def _rates(self) -> tuple[float, ...]:
        return self._recipe.learning_rates

    def _settings(self) -> dict[str, object]:
        """What every cell depends on, besides its own strategy, learning rate and seed."""
        config = self._config.model_dump(mode="json", include={"multi_label", "prompt", "head", "dtype"})
        digests = {f"the {name} set": digest for name, digest in self._data.digests().items()}
        return {
            "the backbone": self._backbone.fingerprint,
            "the labels": self._data.labels,
            "the prompt file": self._prompt_version,
            "the recipe": self._recipe.as_dict(),
            "the settings": config,
            **digests,
        }

    def _describe(self) -> None:
        self._say(
            f"{self._config.task_id}: references on {self._backbone.name} ({self._backbone.device}); "
            f"{len(self._data.labels)} labels; "
            + ", ".join(f"{size} {name}" for name, size in self._data.sizes().items())
        )
        config = self._config
        unused = [
            name for section, names in _WITHOUT_EFFECT.items() for name in config.chosen(section, names)
        ]
        if config.chosen("optimiser", OptimiserConfig.model_fields):
            unused.append("optimiser (the recipe's are --lr, --epochs and --batch-size)")
        if unused:
            self._say(f"note: without effect here: {', '.join(unused)}")
        for note in self._data.notes:
            self._say(f"note: {note}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _kept(self, name: str, measured: Callable[[], tuple[Scores, Scores]]) -> Cell:
        """A row without seeds, measured once."""
        cell = self._folder.load(name)
        if cell is None:
            began = time.monotonic()
            dev, test = measured()
            cell = Cell(name, None, None, dev, test, (), 0, round(time.monotonic() - began, 1))
            self._folder.save(cell)
        return cell

    def _majority(self) -> Cell:
        data = self._data
        train, dev, test = (
            one_hot([example.labels for example in examples], data.labels)
            for examples in (data.train, data.dev, data.test or data.dev)
        )
        scores = [majority(train, gold, data.labels, multi_label=data.multi_label) for gold in (dev, test)]
        return Cell("majority", None, None, scores[0], scores[1], (), 0, 0.0)

    def _zero_shot(self) -> tuple[Scores, Scores]:
        return self._scored(zero_shot(self._config, self._data, self._backbone))

    def _head_only(self) -> tuple[Scores, Scores]:
        return self._scored(self._bare.start)

    def _scored(self, start: Start) -> tuple[Scores, Scores]:
        """Dev and reported scores of what is not trained here."""
        data, encoder = self._data, self._backbone.row_encoder(start.manifest)
        bound = self._backbone.bind(start.manifest, {**start.prompt, **start.head})
        results = []
        for examples in (data.dev, data.test or data.dev):
            encoded = encode(encoder, examples, data.labels)
            found = logits(self._backbone, bound, encoded.rows)
            results.append(score(found, encoded.targets, data.labels, multi_label=data.multi_label))
        return results[0], results[1]

    def _all_tuned(self, strategy: Strategy, progress: TrainingProgress, stop: StopRequest) -> list[Cell]:
        """Of every learning rate with which no seed diverged. Raises TrainingFailedError where there is none."""
        found: list[Cell] = []
        failures: list[TrainingFailedError] = []
        for lr in self._rates:
            try:
                found += [self._tuned(strategy, lr, seed, progress, stop) for seed in self._seeds]
            except TrainingFailedError as error:
                failures.append(error)
                self._say(f"{NAMES[strategy]}: learning rate {lr:g} is left out: {error}")
        if not found:
            raise failures[-1]
        return found

    def _tuned(
        self, strategy: Strategy, lr: float, seed: int, progress: TrainingProgress, stop: StopRequest
    ) -> Cell:
        name = f"{strategy}-lr-{lr!r}-seed-{seed}"
        cell = self._folder.load(name)
        if cell is not None:
            self._say(f"{name}: kept from before, dev {100 * cell.dev.accuracy:.1f} %")
            return cell
        start = self._bare.start if strategy == "full-fine-tuning" else self._fixed
        self._stop_here(stop)
        began = time.monotonic()
        config = self._config
        training = FineTuning(
            config.backbone, config.device, self._data, start, self._recipe, lr=lr, seed=seed
        )
        bar = progress.bar(f"{NAMES[strategy]}, lr {lr:g}, seed {seed}", training.schedule.steps)
        tuned = training.run(listener=bar, stop=stop)
        if tuned is None:
            self._stop_here(stop)
            raise AssertionError("training ends early only when a signal asked for it")
        seconds = round(time.monotonic() - began, 1)
        cell = Cell(name, seed, lr, tuned.dev, tuned.test, tuned.points, tuned.steps, seconds)
        self._folder.save(cell)
        return cell

    def _stop_here(self, stop: StopRequest) -> None:
        if stop.signal_number is not None:
            raise TrainingInterruptedError(
                f"interrupted; what is finished is kept in {self._folder.root}. Give the same command again to go on",
                signal_number=stop.signal_number,
            )

    def _write(
        self, rows: Mapping[str, ReferenceRow], cells: Sequence[Cell], settings: Mapping[str, object]
    ) -> None:
        config, data = self._config, self._data
        table = results_table(
            config.task_id, self._split, [TableRow(row.name, row.scores) for row in rows.values()]
        )
        write_atomically(self._folder.table, plain_text(table).encode())
        about = {
            "task_id": config.task_id,
            "backbone": self._backbone.name,
            "settings": {**settings, "learning_rates": self._rates, "seeds": self._seeds},
            "data": {"sizes": data.sizes(), "digests": data.digests(), "notes": list(data.notes)},
        }
        write_metrics(self._folder.metrics, about | figures(rows, cells, self._split))
        self._console.print(table)
        self._say(
            f"scores: {self._folder.metrics}. References are for comparison: there is no prompt file to publish"
        )
