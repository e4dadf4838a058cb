"""Owns experiment logs: what a run's learners do, told to TensorBoard or to any tracker that accelerate knows.

A `trainer.listeners.Listener` beside the progress bars: loss and learning rate of every step, dev scores of every
evaluation, the settings, and at the end the scores on the reported set. In TensorBoard each learner is a run of its
own, so that curves lie over each other; elsewhere, where a process has one run, its name begins each measure's. A log
that fails costs the log and not the training. Knows no model, and nothing of what a tracker does with what it is told.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.learner import Learner
from trainer.report import Point
from trainer.run_folder import RunFolder

FOLDER = "logs"
Values = Mapping[str, bool | int | float | str]

# Trackers whose package has another name on PyPI.
_PACKAGES = {"comet_ml": "comet-ml"}


class _Log(Protocol):
    """One kind of log."""

    def admitted(self, learner: Learner, settings: Values) -> None:
        """A learner begins, or goes on."""

    def log(self, learner: Learner, values: Mapping[str, float]) -> None:
        """Measures after its step."""

    def left(self, learner: Learner) -> None:
        """A learner has finished, or rests."""

    def finished(self, name: str, values: Mapping[str, float]) -> None:
        """A learner's last scores."""

    def close(self) -> None:
        """Write what is left."""


class ExperimentLog:
    """All logs that a run was asked for, none by default; a context manager."""

    def __init__(self, configs: Sequence[TrainConfig], folder: Path) -> None:
        """`folder` is where the run writes. Raises ConfigError for a tracker that is unknown or not installed.

        None is opened before there is something to tell: what is refused until then leaves nothing behind, here or
        elsewhere.
        """
        names = list(dict.fromkeys(name for config in configs for name in config.log_with))
        project = configs[0].task_id if len(configs) == 1 else folder.name
        self._makers = {name: _maker(name, project, folder / FOLDER) for name in names}
        self._logs: dict[str, _Log] = {}
        self._settings: dict[str, Values] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._makers.clear()  # nobody was told anything: there is nothing to close
        self._tell(lambda log: log.close())

    def about(self, config: TrainConfig, prefix: str = "") -> None:
        """The settings of the learners whose names begin with `prefix`."""
        self._settings[prefix] = _flat(
            config.model_dump(mode="json", exclude_none=True, exclude={"log_with"})
        )

    def admitted(self, learner: Learner) -> None:
        """A learner's settings."""
        prefix = learner.name[: learner.name.rfind("seed-")]
        settings = {**self._settings.get(prefix, {}), "seed": learner.seed}
        self._tell(lambda log: log.admitted(learner, settings))

    def stepped(self, learner: Learner, loss: float) -> None:
        """A step's loss, and the learning rates that it was made with."""
        values = {"train/loss": loss}
        values |= {f"train/{group}_lr": rate for group, rate in learner.rates.items()}
        self._tell(lambda log: log.log(learner, values))

    def evaluated(self, learner: Learner, point: Point) -> None:
        """An evaluation's scores."""
        values = {
            "dev/accuracy": point.dev_accuracy,
            "dev/macro_f1": point.dev_macro_f1,
            "epoch": point.epoch,
        }
        self._tell(lambda log: log.log(learner, values))

    def left(self, learner: Learner) -> None:
        """Nothing comes of it for now; its last scores are told when its run has finished."""
        self._tell(lambda log: log.left(learner))

    def finished(self, folder: Path, prefix: str = "") -> None:
        """The final scores of the learners of a finished run folder, whose names begin with `prefix`."""
        metrics = json.loads(RunFolder(folder).metrics.read_text(encoding="utf-8"))
        reported = metrics["reported_split"]
        for seed in metrics["seeds"]:
            scores = {
                f"final/{split}_{measure}": seed[split][measure]
                for split in dict.fromkeys(("dev", reported))
                for measure in ("accuracy", "macro_f1")
            }
            if seed["seed"] is not None:  # what has no seeds was not learned step by step
                self._finished(f"{prefix}seed-{seed['seed']}", scores)

    def _finished(self, name: str, scores: Mapping[str, float]) -> None:
        self._tell(lambda log: log.finished(name, scores))

    def _tell(self, what: Callable[[_Log], None]) -> None:
        while self._makers:
            name, make = self._makers.popitem()
            try:
                self._logs[name] = make()
            except Exception as error:
                _left_out(name, error)
        for name, log in list(self._logs.items()):
            try:
                what(log)
            except Exception as error:
                del self._logs[name]
                _left_out(name, error)


def _left_out(name: str, error: Exception) -> None:
    """A tracker is somebody else's code and may need a network: the training can do without it."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    print(f"warning: {name} failed ({reason}); the run goes on without it", file=sys.stderr)


class _TensorBoard:
    """Event files in a folder for each learner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._left: dict[str, tuple[int, Values]] = {}  # the last step and the settings of those that left
        self._settings: dict[str, Values] = {}

    def admitted(self, learner: Learner, settings: Values) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder / learner.name
        # Steps that a killed run made after its last checkpoint, or before the first, are made again.
        purge = learner.step + 1 if folder.exists() else None
        self._writers[learner.name] = SummaryWriter(str(folder), purge_step=purge)
        self._settings[learner.name] = settings

    def log(self, learner: Learner, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[learner.name].add_scalar(name, value, learner.step)

    def left(self, learner: Learner) -> None:
        # A writer is a thread and an open file, and there may be thousands of tasks.
        self._writers.pop(learner.name).close()
        self._left[learner.name] = (learner.step, self._settings.pop(learner.name))

    def finished(self, name: str, values: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step, settings = self._left.pop(name, (0, {}))
        with SummaryWriter(str(self._folder / name)) as writer:
            if settings:  # in the learner's own run, where the table of settings shows what came of them
                writer.add_hparams(dict(settings), dict(values), run_name=".", global_step=step)
                return
            # Of a learner that had finished before this process went on, or that learned within a joint one.
            for measure, value in values.items():
                writer.add_scalar(measure, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class _Tracker:
    """One of accelerate's trackers, which has one run: learners are told apart by their names in it.

    Steps are counted for all learners together, as trackers want steps that do not go back.
    """

    def __init__(self, tracker: Any) -> None:
        # This process alone logs: accelerate need not find out for itself what it was launched by.
        tracker.main_process_only = False
        tracker.start()
        self._tracker = tracker
        self._step = 0
        self._seen: dict[str, int] = {}  # of each learner, the count at its last step

    def admitted(self, learner: Learner, settings: Values) -> None:
        if learner.name not in self._seen:
            self._tracker.store_init_configuration(
                {f"{learner.name}/{key}": value for key, value in settings.items()}
            )
        self._step = self._seen[learner.name] = max(self._step, learner.step)

    def log(self, learner: Learner, values: Mapping[str, float]) -> None:
        if "train/loss" in values and self._seen[learner.name] == self._step:
            self._step += 1
        self._seen[learner.name] = self._step
        named = {f"{learner.name}/{name}": value for name, value in values.items()}
        self._tracker.log({**named, f"{learner.name}/step": learner.step}, step=self._step)

    def left(self, learner: Learner) -> None:
        """It has nothing of its own for a learner."""

    def finished(self, name: str, values: Mapping[str, float]) -> None:
        self._tracker.log({f"{name}/{key}": value for key, value in values.items()}, step=self._step)

    def close(self) -> None:
        self._tracker.finish()


class _Plain(logging.LoggerAdapter[logging.Logger]):
    """What accelerate's trackers log to, in place of its own adapter: that one asks accelerate's state which process
    this is, and fails where there is none. Ours alone logs, and the state would take over what torchrun set up.
    """

    def warning_once(self, message: str, *args: object) -> None:
        """Theirs has it."""
        if message not in self._said:
            self._said.add(message)
            self.warning(message, *args)

    _said: ClassVar[set[str]] = set()


def _maker(name: str, project: str, folder: Path) -> Callable[[], _Log]:
    """How to open a log. Raises ConfigError."""
    if name == "tensorboard":
        return lambda: _TensorBoard(folder)
    # It loads whatever trackers are installed: not before one is asked for.
    from accelerate import tracking

    known: dict[str, Any] = tracking.LOGGER_TYPE_TO_CLASS  # those that a caller has registered as well
    if name not in known:
        raise ConfigError(f"log_with: no tracker {name!r}; there are {', '.join(sorted(known))}")
    tracking.logger = _Plain(logging.getLogger(tracking.__name__), {})
    kind = known[name]
    installed = {str(tracker) for tracker in tracking.get_available_trackers()}
    if kind.__module__ == tracking.__name__ and name not in installed:
        raise ConfigError(f"log_with: {name} is not installed: pip install {_PACKAGES.get(name, name)}")

    def make() -> _Log:
        if kind.requires_logging_directory:
            folder.mkdir(parents=True, exist_ok=True)
            return _Tracker(kind(project, str(folder)))
        return _Tracker(kind(project))

    return make


def _flat(values: Mapping[str, Any], prefix: str = "") -> Values:
    """Nested settings by dotted keys; lists as JSON, which is text to every tracker."""
    result: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return result
