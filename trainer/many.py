"""Owns many tasks trained in one go: one frozen backbone, and one batch for all of them.

Each task ends with a run folder of its own, as if it had been trained alone. Knows the order of things; what a run is
belongs to `trainer.run`, and how prompts share a batch to `trainer.mixture`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from rich.console import Console
from torch import Tensor

from backbone import Backbone, BackboneError
from prompt_store import PromptStoreError
from trainer.checkpoints import Checkpoints
from trainer.config import TrainConfig, config_of
from trainer.errors import (
    RanksError,
    RunFolderError,
    TrainerError,
    TrainingFailedError,
    TrainingInterruptedError,
    named,
)
from trainer.interrupt import StopRequest, stop_on_signals
from trainer.joint import (
    PREFIX,
    begun,
    check_together,
    joint_learners,
    new_task,
    of_task,
    parameterisation_of,
)
from trainer.learner import Learned, Learner
from trainer.listeners import Listeners
from trainer.many_config import LIST, NEW_TASK, STATE, ManyConfig, rows_of, sharing_of
from trainer.mixture import train_together
from trainer.progress import TrainingProgress
from trainer.ranks import ALONE, Ranks
from trainer.report import many_table
from trainer.run import Run, load
from trainer.run_folder import RunFolder, read_list, with_absolute_paths
from trainer.state import write_atomically
from trainer.trackers import ExperimentLog

# What may go wrong with one task and not with another.
_OWN = (TrainerError, BackboneError, PromptStoreError)


@dataclass(frozen=True)
class ManyResult:
    """What came of each task: its finished run folder, or the reason why there is none."""

    finished: Mapping[str, RunFolder]
    failures: Mapping[str, str]


def is_many_folder(folder: Path) -> bool:
    """Whether several tasks were trained in a folder."""
    return (folder / LIST).exists()


def train_many(config: ManyConfig, *, console: Console, ranks: Ranks = ALONE) -> ManyResult:
    """Train every task, as many prompts at a time as have room in a batch.

    A task that diverges, or cannot be written at its end, fails alone. Raises TrainerError for a slip in any task
    before anything is written, and TrainingInterruptedError after Ctrl-C or SIGTERM: `resume_many` goes on.
    """
    RunFolder(config.output).refuse_taken()
    work = _Work(config, load(config.tasks[0], ranks), console, ranks)
    config = replace(config, tasks=tuple(work.resolved(task) for task in config.tasks))
    if config.share is not None:
        check_together(config.tasks)
    checkpoints = Checkpoints(config.output / STATE)
    checkpoints.lock()  # of two that start at once, one has the folder
    for folder in (config.output, *(Path(task.output) for task in config.tasks)):
        RunFolder(folder).refuse_taken()
    _write_list(config)
    for task in config.tasks:
        RunFolder(Path(task.output)).create(with_absolute_paths(task))
    work.config = config
    return _train(work, checkpoints, console)


def resume_many(folder: Path, *, console: Console, ranks: Ranks = ALONE) -> ManyResult:
    """Go on with tasks whose training was interrupted; they end as they would have ended."""
    listed = read_list(folder)
    rows = rows_of(listed.get("rows_at_once"), folder / LIST)
    tasks = tuple(_config_in(folder / name, listed) for name in listed["tasks"])
    if all(RunFolder(folder / name).metrics.exists() for name in listed["tasks"]):
        raise RunFolderError(
            f"{folder}: all of its tasks are finished; publish them with: promptmux publish "
            f"{shlex.quote(str(folder))}/*/prompt.safetensors"
        )
    config = ManyConfig(folder, tasks, rows, *sharing_of(listed, folder / LIST))
    work = _Work(config, load(tasks[0], ranks), console, ranks)
    return _train(work, Checkpoints(config.output / STATE), console)


def _write_list(config: ManyConfig) -> None:
    """Say in the output folder what is trained there, before a task's folder is made: whoever is killed between them is
    gone on with as a whole.
    """
    listed = {
        "tasks": [task.task_id for task in config.tasks],
        "rows_at_once": config.rows_at_once,
        "share": config.share,
        "rank": config.rank,
        "settings": {
            task.task_id: with_absolute_paths(task).model_dump(mode="json") for task in config.tasks
        },
    }
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        write_atomically(config.output / LIST, json.dumps(listed, indent=1, allow_nan=False).encode())
    except OSError as error:
        raise RunFolderError(f"{config.output}: {error.strerror}") from None


def _config_in(root: Path, listed: Mapping[str, Any]) -> TrainConfig:
    """A listed task's settings, in whose folder they are written if a kill came before that."""
    folder, settings = RunFolder(root), listed.get("settings")
    values = settings.get(root.name) if isinstance(settings, dict) else None
    if not folder.started and isinstance(values, dict):
        folder.create(config_of(values, {"output": str(root.resolve())}, root.parent / LIST))
    return folder.config()


def _train(work: _Work, checkpoints: Checkpoints, console: Console) -> ManyResult:
    config, ranks, log = work.config, work.ranks, work.log
    RunFolder(config.output).claim(config.shared)
    of_learner = {f"{task.task_id}.seed-{seed}": task for task in config.tasks for seed in task.seeds}
    _tidy(checkpoints, config.tasks)
    with (
        RunFolder(config.output).gone_on_with(),
        stop_on_signals(ranks.signal) as stop,
        log,
        TrainingProgress(console) as progress,
    ):
        for stage in (work.joint_learners, work.learners):
            for learner in train_together(
                work.backbone,
                stage(stop),
                checkpoints=checkpoints,
                listener=Listeners(progress, log),
                stop=stop,
                rows_at_once=config.rows_at_once,
                ranks=ranks,
            ):
                work.take(learner)
                if learner.name in of_learner:
                    _tidy(checkpoints, [of_learner[learner.name]])
            if stop():
                break
    folders = {task.task_id: RunFolder(Path(task.output)) for task in config.tasks}
    finished = {name: folder for name, folder in folders.items() if folder.metrics.exists()}
    # A signal that came while the last task was written has nothing left to interrupt.
    if stop.signal_number is not None and folders.keys() - finished.keys() - work.failures.keys():
        raise TrainingInterruptedError(
            f"interrupted; the tasks are saved. Go on with: {RunFolder(config.output).resume_command()}",
            signal_number=stop.signal_number,
        )
    if len(finished) == len(folders):
        # Until then, whoever goes on alone starts from what was learned jointly.
        checkpoints.forget(f"{PREFIX}seed-{seed}" for task in config.tasks for seed in task.seeds)
    result = ManyResult(finished, work.failures)
    console.print(many_table({name: folder.metrics for name, folder in finished.items()}, work.failures))
    return result


class _Work:
    """The runs of all tasks: prepared when their turn comes, finished when their last learner is."""

    def __init__(self, config: ManyConfig, backbone: Backbone, console: Console, ranks: Ranks) -> None:
        """Raises ConfigError for an experiment log that cannot be had."""
        self.config, self.backbone, self.ranks, self._console = config, backbone, ranks, console
        self.log = ExperimentLog(config.tasks, config.output)
        self._runs: dict[str, tuple[Run, Learner]] = {}  # by the learner's name
        self._sharing: list[Run] = []
        self._jointly: dict[int, Learned] = {}  # by seed
        self.failures: dict[str, str] = {}

    def resolved(self, task: TrainConfig) -> TrainConfig:
        """A task's settings once everything that can be checked before training is. Raises TrainerError."""
        with named(f"task {task.task_id}"):
            # Its examples are read again when its turn comes: all at once may be many.
            return self._run(task).config

    def joint_learners(self, stop: StopRequest) -> Iterator[Learner]:
        """What all tasks learn together first; nothing where nothing is shared."""
        if self.config.share is None:
            return
        for config in self.config.tasks:
            with named(f"task {config.task_id}"):
                self._sharing.append(self._run(config))
        try:
            for run in self._sharing:
                with named(f"task {run.config.task_id}"):
                    run.begin(new=False)
                    run.prepare(stop)
        except TrainingInterruptedError:
            return
        tasks = [run.task() for run in self._sharing]
        shared = parameterisation_of(self.config.share, self.config.rank)
        yield from joint_learners(self._sharing, tasks, shared)

    def learners(self, stop: StopRequest) -> Iterator[Learner]:
        """What each task learns for itself."""
        if self._sharing:
            yield from self._after_joint()
            return
        for config in self.config.tasks:
            if RunFolder(Path(config.output)).metrics.exists():
                self._console.print(f"{config.task_id}: finished before", highlight=False)
                continue
            own: list[Learner] = []
            try:
                with self._alone(config.task_id):
                    run = self._run(config)
                    run.begin(new=False)
                    run.prepare(stop)
                    own = self._of(run, None)
            except TrainingInterruptedError:
                return  # those that are active are saved by the mixture
            yield from own

    def take(self, learner: Learner) -> None:
        """A learner has finished: its run too, if it was the last."""
        run, _ = self._runs.pop(learner.name, (None, None))
        if run is None:
            if learner.failure is not None:
                raise TrainingFailedError(learner.failure)
            self._jointly[learner.seed] = learner.learned()
            return
        task_id = run.config.task_id
        if task_id in self.failures:
            return
        with self._alone(task_id):
            if run.take(learner):
                self._finish(run)
        if learner.failure is not None:
            # Of a task with a seed that diverged nothing is kept: others have its rows.
            for own, other in self._runs.values():
                if own is run:
                    other.give_up(learner.failure)

    def _run(self, config: TrainConfig) -> Run:
        prefix = f"{config.task_id}."
        run = Run(config, self.backbone, self._console, prefix=prefix, ranks=self.ranks)
        self.log.about(run.config, prefix)
        return run

    def _of(self, run: Run, starts: Mapping[int, Mapping[str, Tensor]] | None) -> list[Learner]:
        own = list(run.learners(starts))
        if not own:
            self._finish(run)
        self._runs |= {learner.name: (run, learner) for learner in own}
        return own

    def _after_joint(self) -> Iterator[Learner]:
        """A shared prompt is where every task goes on from by itself; with factors, each has its own already."""
        share, rank = self.config.share, self.config.rank
        names: list[JsonValue] = [run.config.task_id for run in self._sharing]
        how = {"share": share, "tasks": names} | ({"rank": rank} if share == "factored" else {})
        if share is not None:
            first = self._jointly[self._sharing[0].config.seeds[0]]
            start = new_task(first, parameterisation_of(share, rank))
            write_atomically(self.config.output / NEW_TASK, self._sharing[0].as_source(start, how))
        for at, run in enumerate(self._sharing):
            if run.folder.metrics.exists():
                continue
            own: list[Learner] = []
            with self._alone(run.config.task_id):
                run.learned_jointly(how)
                if share == "prompt":
                    own = self._of(run, begun(self._jointly, at))
                else:
                    for seed, learned in self._jointly.items():
                        run.take_learned(seed, of_task(learned, at))
                    self._finish(run)
            yield from own

    def _finish(self, run: Run) -> None:
        self.log.finished(run.finish().folder, f"{run.config.task_id}.")

    @contextmanager
    def _alone(self, task_id: str) -> Iterator[None]:
        """What fails in here costs this task and no other."""
        try:
            yield
        except (TrainingInterruptedError, RanksError):
            raise
        except TrainingFailedError as error:  # its settings are these for good, in this folder
            self.failures[task_id] = f"{error}; train it alone, into another --output"
        except _OWN as error:
            self.failures[task_id] = str(error)


def _tidy(checkpoints: Checkpoints, tasks: Iterable[TrainConfig]) -> None:
    """Drop the states of finished tasks, which nobody goes on with."""
    for task in tasks:
        if RunFolder(Path(task.output)).metrics.exists():
            checkpoints.forget(f"{task.task_id}.seed-{seed}" for seed in task.seeds)
