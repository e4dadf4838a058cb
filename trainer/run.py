"""Owns one training run from examples to a run folder: head-only reference, every seed, the prompt files, the
report.

Knows the order of things and nothing of how each is done. A run's seeds are trained together, and with the seeds of
other runs where there are several (`trainer.many`).
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from torch import Tensor

from backbone import Backbone, BackboneError
from prompt_store import Manifest, encode_prompt
from trainer.checkpoints import Checkpoints
from trainer.config import TrainConfig
from trainer.data import load_examples
from trainer.ensemble import join_seeds
from trainer.errors import ConfigError, RunFolderError, TrainingFailedError, TrainingInterruptedError
from trainer.gate import START, Floors, judge_file
from trainer.init import Initialiser
from trainer.interrupt import StopRequest, stop_on_signals
from trainer.label_texts import starting_texts
from trainer.learner import Learned, Learner, Task, Tensors
from trainer.listeners import Listeners
from trainer.manifests import build_manifest
from trainer.methods import head_only, parameterisation_of, resolve, trains_prompt
from trainer.mixture import train_together
from trainer.outcome import Outcome, Reference
from trainer.probing import encode_splits, probe
from trainer.progress import TrainingProgress
from trainer.prompt_file import finish, stored
from trainer.ranks import ALONE, Ranks
from trainer.report import TableRow
from trainer.rows import TrainingRows
from trainer.run_folder import RunFolder, deciding, with_absolute_paths
from trainer.starts import Starts, check_start, untrained
from trainer.trackers import ExperimentLog
from trainer.transfer import save_learned


@dataclass(frozen=True)
class RunResult:
    """A finished run. `prompt` is the file to publish, `version` its SHA-256; `rows` are the table's."""

    folder: Path
    prompt: Path
    version: str
    best_seed: int | None
    rows: tuple[TableRow, ...]


def train(config: TrainConfig, *, console: Console, ranks: Ranks = ALONE) -> RunResult:
    """Run a configuration in a new run folder; where it was started in several processes, they are `ranks`.

    Raises TrainerError: bad settings or data (exit code 2), a folder in use, or TrainingInterruptedError
    after Ctrl-C or SIGTERM, which leaves a run that `resume` finishes.
    """
    RunFolder(Path(config.output)).refuse_taken()  # before a backbone is loaded for it
    return _alone(Run(config, load(config, ranks), console, ranks=ranks), new=True)


def resume(folder: Path, *, console: Console, ranks: Ranks = ALONE) -> RunResult:
    """Go on with a run that was interrupted or killed; it ends as it would have ended. Raises as `train`."""
    config = RunFolder(folder).config()
    if RunFolder(folder).metrics.exists():
        prompt = RunFolder(folder).prompt
        refusal = judge_file(prompt).refusal if prompt.is_file() else ""
        how = f"promptmux publish {shlex.quote(str(prompt))}"
        raise RunFolderError(
            f"{folder}: this run is finished; "
            + (
                f"it is not published unless forced ({refusal}): {how} --force"
                if refusal
                else f"publish it with: {how}"
            )
        )
    if RunFolder(folder).company is not None:  # alone it would learn something else, from the start
        raise RunFolderError(
            f"{folder}: this task is trained with others; go on with all: {RunFolder(folder).resume_command()}"
        )
    return _alone(Run(config, load(config, ranks), console, ranks=ranks), new=False)


def _alone(run: Run, *, new: bool) -> RunResult:
    with (
        ExperimentLog([run.config], run.folder.root) as log,
        run.folder.gone_on_with(),
        stop_on_signals(run.ranks.signal) as stop,
    ):
        log.about(run.config)
        checkpoints = Checkpoints(run.folder.state)
        checkpoints.lock()  # before settings are written: of two that start at once, one has the folder
        run.begin(new=new)
        run.prepare(stop)
        with TrainingProgress(run.console) as progress:
            learners = train_together(
                run.backbone,
                run.learners(),
                checkpoints=checkpoints,
                listener=Listeners(progress, log),
                stop=stop,
                rows_at_once=run.config.rows_at_once,
                ranks=run.ranks,
            )
            for learner in learners:
                if learner.failure is not None:  # --resume would end here again
                    raise TrainingFailedError(
                        f"{learner.failure}, in another --output: {run.folder.root} keeps its settings"
                    )
                run.take(learner)
        run.stop_here(stop)
        result = run.finish()
        log.finished(result.folder)
        return result


def load(config: TrainConfig, ranks: Ranks = ALONE) -> Backbone:
    """The configuration's backbone, in every process. Raises ConfigError."""
    try:
        return ranks.load(config.backbone, device=config.device, dtype=config.dtype)
    except BackboneError as error:
        raise ConfigError(f"backbone: {error}") from None


class Run:
    """One configuration on its way: `begin`, `prepare`, then its `learners` are trained and `take`n, then `finish`."""

    def __init__(
        self,
        config: TrainConfig,
        backbone: Backbone,
        console: Console,
        *,
        prefix: str = "",
        probes: dict[bytes, Reference] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Where several runs are trained together, `prefix` begins the names of its learners, and runs on the same
        examples share their `probes` (head-only references by what they depend on).

        Raises TrainerError for all that can be known to be wrong before anything is computed.
        """
        self._began = time.monotonic()
        self.console, self.backbone, self.ranks, self._prefix = console, backbone, ranks, prefix
        self.folder = RunFolder(Path(config.output))
        self.data = load_examples(config)
        self.config = resolve(config, self.data, backbone)
        self._manifest = build_manifest(self.config, self.data, backbone)
        self._source = check_start(self.config, self._manifest, backbone)
        self._parameterisation = parameterisation_of(self.config, backbone)
        self._learned: dict[int, Learned] = {}
        self._probes = {} if probes is None else probes

    def begin(self, *, new: bool) -> None:
        """Make the run folder, or go on in it; say what is done. Raises RunFolderError."""
        if new:
            self.folder.refuse_taken()
            self.folder.create(with_absolute_paths(self.config))
        self.claim(deciding(self.config) | self.source)
        sizes = self.data.sizes()
        self._say(
            f"{self.config.task_id}: {self.config.method} on {self.backbone.name} "
            f"({self.backbone.dtype_name}, {self.backbone.device}); {len(self.data.labels)} labels; "
            + ", ".join(f"{size} {name}" for name, size in sizes.items())
        )
        if unused := self.config.unused:
            self._say(f"note: without effect here: {', '.join(unused)}")
        for note in self.data.notes:
            self._say(f"note: {note}")

    @property
    def source(self) -> dict[str, object]:
        """What its prompt starts from, where it is another task's: nothing of it may change under a run."""
        return {} if self._source is None else {"what prompt.init_from leads to": self._source.digest}

    def claim(self, decided: Mapping[str, object]) -> None:
        """Bind the folder's state to data, backbone and what was `decided`. Raises RunFolderError where it was made
        with others.
        """
        # The dtype as it was asked for: a run that says "auto" may go on on a machine that computes in another.
        identity: dict[str, object] = {
            "the backbone": self.backbone.fingerprint,
            "the dtype": self.config.dtype,
        }
        identity |= {f"the {name} set": digest for name, digest in self.data.digests().items()}
        self.folder.claim(identity | dict(decided))

    def prepare(self, stop: StopRequest) -> None:
        """Fit the head-only reference and tokenise everything."""
        own = build_manifest(self.config, self.data, self.backbone, method="head-only")
        plain = own
        if self.config.method != "head-only":
            # A template or a pooling that suits a prompt may be a poor one for a head, and lower what must be beaten.
            alone = resolve(head_only(self.config), self.data, self.backbone)
            plain = build_manifest(alone, self.data, self.backbone)
        self._start = self._probed(own, stop, "" if plain == own else ", with this template and pooling")
        reference = self._probed(plain, stop, "" if plain == own else ", of the text alone")
        self._reference = max(self._start, reference, key=lambda found: found.probe.dev.accuracy)
        self._splits = encode_splits(self.backbone, self._manifest, self.data)

    def _probed(self, manifest: Manifest, stop: StopRequest, which: str) -> Reference:
        key = manifest.canonical_json() + json.dumps(self.data.digests()).encode()
        if key not in self._probes:
            found = self._probes[key] = probe(
                self.backbone, manifest, self.data, between=lambda: self.stop_here(stop), ranks=self.ranks
            )
            self._say(f"head only{which}: dev {100 * found.probe.dev.accuracy:.1f} %")
            if found.cut:
                self._say(f"note: {found.cut} of {found.texts} texts are longer than their rows, and are cut")
        return self._probes[key]

    @property
    def probe(self) -> Mapping[str, Tensor]:
        """A linear head on what this prompt's own reads, once the run is prepared: what a head starts from."""
        return self._start.probe.tensors()

    def task(self) -> Task:
        """What its prompt learns from."""
        config = self.config
        train = TrainingRows(
            self.backbone.row_encoder(self._manifest),
            self.data.train,
            self.data.labels,
            word_dropout=config.optimiser.word_dropout or 0.0,
        )
        return Task(self._manifest, train, self._splits["dev"])

    def starts(self, task: Task, initialiser: Initialiser | None = None) -> Starts:
        """What its training starts from; its own words, if no `initialiser` brings others."""
        own = initialiser or Initialiser(
            self.backbone,
            task.train.whole,
            task_text=self.config.prompt.task_text,
            label_texts=starting_texts(self.config),
        )
        return Starts(self.config, self.backbone, own, self._start.probe, self._source)

    def learners(self, begun: Mapping[int, Tensors] | None = None) -> Iterator[Learner]:
        """One learner for each seed; none where the method trains no prompt.

        `begun` are the tensors that seeds go on from, named as in the prompt file; without them they start anew.
        """
        if not trains_prompt(self.config.method):
            return
        task, parameterisation = self.task(), self._parameterisation
        starts = self.starts(task)
        for seed in self.config.seeds:
            raw = (
                starts.raw(seed, parameterisation)
                if begun is None
                else parameterisation.start(begun[seed], seed)
            )
            yield Learner(
                f"{self._prefix}seed-{seed}",
                self.backbone,
                [task],
                raw,
                self.config.optimiser,
                seed=seed,
                fold=lambda raw: (parameterisation.fold(raw),),
                ranks=self.ranks,
            )

    def learned_jointly(self, how: Mapping[str, JsonValue]) -> None:
        """Let its prompt files say with whom and how it learned."""
        self._manifest = self._manifest.model_copy(update={"training": {"jointly": dict(how)}})

    def take(self, learner: Learner) -> bool:
        """One of `learners` is trained; returns whether all are. Raises TrainingFailedError."""
        if learner.failure is not None:
            raise TrainingFailedError(learner.failure)
        return self.take_learned(learner.seed, learner.learned())

    def take_learned(self, seed: int, learned: Learned) -> bool:
        """What a seed came to; returns whether all seeds are there."""
        self._learned[seed] = learned
        return len(self._learned) == len(self.config.seeds)

    def finish(self) -> RunResult:
        """Write the prompt files and the report."""
        prompts: dict[int | None, Mapping[str, Tensor]]
        if trains_prompt(self.config.method):
            # In the order of the seeds, whichever was trained first.
            prompts = {seed: self._learned[seed].prompts[0] for seed in self.config.seeds}
        elif self.config.method == "head-only":
            prompts = {None: dict(self.probe)}
        else:
            prompts = {None: untrained(self.config, self.backbone)}
        floors = Floors.of(self.data, self._reference.probe.dev)
        own = (self.config, self.data, self.backbone, self._manifest)
        files = {seed: finish(*own, tensors, seed, self._splits, floors) for seed, tensors in prompts.items()}
        for seed, learned in self._learned.items():
            save_learned(self.folder.learned(seed), learned.raw, learned.prompts[0])
        curves = {seed: self._learned[seed].points for seed in self.config.seeds if seed in self._learned}
        joint = join_seeds(self.backbone, self.data, files, self._splits) if self.config.ensemble else None
        outcome = Outcome(self.config, self.data, self.backbone.name, self._reference, files, curves, joint)
        table = outcome.write(self.folder, seconds=time.monotonic() - self._began)
        self.console.print(table)
        for note in outcome.notes:
            self._say(f"note: {note}")
        self._say(f"prompt file: {self.folder.prompt} (version {outcome.version[:12]})")
        return RunResult(
            self.folder.root, self.folder.prompt, outcome.version, outcome.best_seed, outcome.rows
        )

    def as_source(self, tensors: Tensors, how: Mapping[str, JsonValue]) -> bytes:
        """A prompt file with this soft prompt or prefix and this task's untrained head, to start other tasks from; its
        record says `how` it was learned, and the publish gate refuses it.
        """
        linear = self.config.head.type == "linear"
        head = dict(self.probe) if linear else untrained(self.config, self.backbone)
        arrays = {name: stored(name, tensor) for name, tensor in (dict(tensors) | head).items()}
        record: dict[str, JsonValue] = {"jointly": dict(how), START: True}
        return encode_prompt(self._manifest.model_copy(update={"training": record}), arrays)

    def stop_here(self, stop: StopRequest) -> None:
        """Raise TrainingInterruptedError if a signal asked for an end."""
        if stop.signal_number is not None:
            raise TrainingInterruptedError(
                f"interrupted; the run is saved. Go on with: {self.folder.resume_command()}",
                signal_number=stop.signal_number,
            )

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
