"""Experiment logs say what metrics.json says, read by the tracker's own reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate import PartialState, tracking
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trainer
from trainer import ConfigError, RunFolderError, TrainConfig, TrainingInterruptedError
from trainer.learner import Learner
from trainer.progress import TrainingProgress
from trainer.run import Run, RunResult

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("quick_runs")


def _curves(folder: Path) -> dict[str, dict[int, float]]:
    """Every measure's values by step, as TensorBoard reads them; in their order, for it takes files by name, and the
    tenth file of a second comes before the ninth.
    """
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: dict(sorted((e.step, e.value) for e in events.Scalars(tag))) for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_what_metrics_json_says(settings: Settings, console: Console) -> None:
    result = trainer.train(settings(seeds=(0, 1), log_with=("tensorboard",)), console=console)
    assert sorted(path.name for path in (result.folder / "logs").iterdir()) == ["seed-0", "seed-1"]
    for seed in json.loads((result.folder / "metrics.json").read_text())["seeds"]:
        curves = _curves(result.folder / "logs" / f"seed-{seed['seed']}")
        points = seed["curve"]
        for name, key in (
            ("dev/accuracy", "dev_accuracy"),
            ("dev/macro_f1", "dev_macro_f1"),
            ("epoch", "epoch"),
        ):
            assert list(curves[name].values()) == pytest.approx([p[key] for p in points], rel=1e-6)
        steps = sorted(curves["dev/accuracy"])
        assert [curves["epoch"][step] for step in steps] == pytest.approx([step / 6 for step in steps])
        # metrics.json has the mean loss between two evaluations, the log that of each step.
        for before, at, point in zip([0, *steps], steps, points, strict=False):
            between = [curves["train/loss"][step] for step in range(before + 1, at + 1)]
            assert sum(between) / len(between) == pytest.approx(point["loss"], rel=1e-5)
        rates = curves["train/prompt_lr"]
        assert list(rates) == list(range(1, steps[-1] + 1))
        assert max(rates.values()) == pytest.approx(0.05, rel=0.2)
        assert rates[steps[-1]] < 0.01 < rates[10]
        assert list(curves["final/test_accuracy"].values()) == pytest.approx([seed["test"]["accuracy"]])
        assert list(curves["final/dev_macro_f1"].values()) == pytest.approx([seed["dev"]["macro_f1"]])


def test_tensorboard_keeps_no_file_open_for_a_learner_that_left(
    settings: Settings, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    opened: list[SummaryWriter] = []
    made, finish = SummaryWriter.__init__, Run.finish

    def keeps(writer: SummaryWriter, *arguments: object, **more: object) -> None:
        made(writer, *arguments, **more)
        opened.append(writer)

    def looks(run: Run) -> RunResult:
        assert [writer.file_writer for writer in opened] == [None]  # closed
        return finish(run)

    monkeypatch.setattr(SummaryWriter, "__init__", keeps)
    monkeypatch.setattr(Run, "finish", looks)
    trainer.train(settings(log_with=("tensorboard",), optimiser__epochs=1), console=console)
    assert all(writer.file_writer is None for writer in opened)


def test_a_resumed_run_goes_on_with_its_curves(
    settings: Settings, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    def stepped(progress: TrainingProgress, learner: Learner, loss: float) -> None:
        if learner.step == 20 and not (Path(config.output) / "state" / "index.json.seen").exists():
            (Path(config.output) / "state" / "index.json.seen").touch()
            signal.raise_signal(signal.SIGINT)

    config = settings(log_with=("tensorboard",))
    monkeypatch.setattr(TrainingProgress, "stepped", stepped)
    with pytest.raises(TrainingInterruptedError):
        trainer.train(config, console=console)
    result = trainer.resume(Path(config.output), console=console)
    (seed,) = json.loads((result.folder / "metrics.json").read_text())["seeds"]
    curves = _curves(result.folder / "logs" / "seed-0")
    assert list(curves["dev/accuracy"].values()) == pytest.approx([p["dev_accuracy"] for p in seed["curve"]])
    assert sorted(curves["train/loss"]) == list(range(1, max(curves["dev/accuracy"]) + 1))


def test_a_run_that_was_killed_before_it_was_saved_has_each_step_once(
    settings: Settings, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def stepped(progress: TrainingProgress, learner: Learner, loss: float) -> None:
        if learner.step == 3:
            raise Killed

    config = settings(log_with=("tensorboard",), optimiser__epochs=1, optimiser__evaluations=1)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "stepped", stepped)
        with pytest.raises(Killed):
            trainer.train(config, console=console)
    assert not (Path(config.output) / "state" / "index.json").exists()
    result = trainer.resume(Path(config.output), console=console)
    events = EventAccumulator(str(result.folder / "logs" / "seed-0"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, len(steps) + 1))


class Board(tracking.TensorBoardTracker):
    """One of accelerate's own trackers, which log what they do through accelerate's logger."""

    name = "board"


def test_accelerates_own_trackers_need_no_state_of_accelerate(settings: Settings, console: Console) -> None:
    tracking.register_tracker_class(Board)
    try:
        result = trainer.train(settings(log_with=("board",), optimiser__epochs=1), console=console)
    finally:
        del tracking.LOGGER_TYPE_TO_CLASS["board"]
    assert PartialState._shared_state == {}
    (folder,) = (path for path in (result.folder / "logs").iterdir() if path.is_dir())
    curves = _curves(folder)
    (seed,) = json.loads((result.folder / "metrics.json").read_text())["seeds"]
    assert list(curves["seed-0/dev/accuracy"].values()) == pytest.approx(
        [point["dev_accuracy"] for point in seed["curve"]]
    )


class Notebook(tracking.GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "notebook"
    requires_logging_directory = False
    told: list[object]

    def __init__(self, run_name: str) -> None:
        super().__init__()
        type(self).told = [("project", run_name)]

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self.told.append(("settings", values))

    def log(self, values: dict[str, float], step: int | None = None, **more: object) -> None:
        if any(name.startswith("2.") for name in values) and "fails" in str(self.told[0]):
            raise ConnectionError("no network\nat all")
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("finished")


@pytest.fixture
def notebook() -> Iterator[type[Notebook]]:
    tracking.register_tracker_class(Notebook)
    yield Notebook
    del tracking.LOGGER_TYPE_TO_CLASS["notebook"]


def test_any_tracker_of_accelerate_is_told_in_steps_that_do_not_go_back(
    settings: Settings, console: Console, notebook: type[Notebook]
) -> None:
    grid = {"optimiser.prompt_lr": [0.01, 0.05]}
    values = settings(log_with=("notebook",), optimiser__epochs=2).model_dump(mode="json", exclude_none=True)
    points = trainer.plan(None, values, grid)
    result = trainer.sweep(points, console=console)
    first, *told, last = notebook.told
    assert first == ("project", "run")
    assert last == "finished"
    given = [values for what, values in told if what == "settings"]
    assert [values["1.seed-0/optimiser.prompt_lr"] for values in given[:1]] == [0.01]
    assert [values["2.seed-0/optimiser.prompt_lr"] for values in given[1:]] == [0.05]
    steps = [step for step, _ in told if isinstance(step, int)]
    assert steps == sorted(steps)
    assert steps[-1] == 12  # both settings made their steps side by side
    (seed,) = json.loads((result.folder / "metrics.json").read_text())["seeds"]
    best = {name: value for _, values in told for name, value in values.items() if "final/" in name}
    assert seed["test"]["accuracy"] in [
        value for name, value in best.items() if name.endswith("test_accuracy")
    ]


def test_a_log_that_fails_does_not_cost_the_training(
    settings: Settings, console: Console, notebook: type[Notebook], capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings(log_with=("notebook",), optimiser__epochs=1, output="fails").model_dump(
        mode="json", exclude_none=True
    )
    values["output"] = str(Path(values["data"]["train"]).parent / "fails")
    points = trainer.plan(None, values, {"optimiser.prompt_lr": [0.01, 0.05]})
    assert trainer.sweep(points, console=console).prompt.exists()
    assert "notebook failed (no network); the run goes on without it" in capsys.readouterr().err
    assert "finished" not in notebook.told


def test_a_tracker_that_cannot_start_costs_the_log_alone(
    settings: Settings, console: Console, notebook: type[Notebook], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also of a run that goes on without a network, whose settings nobody can change."""

    def start(tracker: Notebook) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(Notebook, "start", start)
    config = settings(log_with=("notebook", "tensorboard"), optimiser__epochs=1)
    result = trainer.train(config, console=console)
    assert "notebook failed (no network); the run goes on without it" in capsys.readouterr().err
    assert _curves(result.folder / "logs" / "seed-0")["train/loss"]


def test_what_is_refused_before_it_trains_opens_no_log(
    settings: Settings, console: Console, notebook: type[Notebook]
) -> None:
    config = settings(log_with=("notebook",), optimiser__epochs=1)
    folder = trainer.train(config, console=console).folder
    (folder / "metrics.json").unlink()
    Path(config.data.train).write_text(Path(config.data.train).read_text() * 2)
    notebook.told = []
    with pytest.raises(RunFolderError, match="the train set changed"):
        trainer.resume(folder, console=console)
    assert notebook.told == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing", "no tracker 'nothing'; there are .*wandb"), ("comet_ml", "pip install comet-ml")],
)
def test_a_tracker_that_is_not_there_is_one_line_before_anything_is_trained(
    settings: Settings, console: Console, name: str, says: str
) -> None:
    if name in map(str, tracking.get_available_trackers()):
        pytest.skip(f"{name} is installed here: nothing to refuse")
    config = settings(log_with=(name,))
    with pytest.raises(ConfigError, match=says):
        trainer.train(config, console=console)
    assert not Path(config.output).exists()
