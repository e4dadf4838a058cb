"""A run that is killed, or asked to stop, goes on and ends with the bits of a run that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from backbone import Backbone
from tests.trainer.conftest import PROBE_ITERATIONS
from trainer import RunFolderError, TrainConfig, TrainingInterruptedError, resume, to_toml, train
from trainer.interrupt import StopRequest
from trainer.learner import Learner
from trainer.progress import TrainingProgress
from trainer.run import Run
from trainer.run_folder import RunFolder
from trainer.state import load_checkpoint, save_checkpoint
from trainer.step import step

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("quick_runs")
TRAIN = """
import sys
from pathlib import Path
import torch
from rich.console import Console
import trainer
import trainer.head_only

torch.set_num_threads(1)
trainer.head_only.MAX_ITERATIONS = int(sys.argv[2])
try:
    trainer.train(trainer.load_config(Path(sys.argv[1])), console=Console())
except trainer.TrainerError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def _start(config: TrainConfig, path: Path) -> subprocess.Popen[str]:
    path.write_text(to_toml(config))
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(path), str(PROBE_ITERATIONS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


@pytest.fixture
def long_run(settings: Settings, tmp_path: Path) -> TrainConfig:
    return settings(
        output=str(tmp_path / "killed"), method="p-tuning-v2", seeds=(3, 4), optimiser__epochs=12,
        optimiser__evaluations=6, optimiser__patience=6,
    )  # fmt: skip


def test_a_killed_run_ends_as_one_that_was_left_alone(
    long_run: TrainConfig, console: Console, tmp_path: Path
) -> None:
    alone = train(long_run.model_copy(update={"output": str(tmp_path / "alone")}), console=console)
    folder = RunFolder(Path(long_run.output))
    process = _start(long_run, tmp_path / "config.toml")
    _wait_for(folder.state / "index.json", process)  # somewhere between two checkpoints
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not folder.metrics.exists()
    result = resume(folder.root, console=console)
    for name in ("prompt.safetensors", "seeds/seed-3.safetensors", "seeds/seed-4.safetensors"):
        assert (result.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    with pytest.raises(RunFolderError, match="this run is finished"):
        resume(folder.root, console=console)


def test_a_terminated_run_says_how_to_go_on(long_run: TrainConfig, tmp_path: Path) -> None:
    process = _start(long_run, tmp_path / "config.toml")
    _wait_for(RunFolder(Path(long_run.output)).state / "index.json", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert f"promptmux train --resume {long_run.output}" in output
    assert "Traceback" not in output


def test_stopped_at_any_step_it_ends_as_if_left_alone(
    long_run: TrainConfig, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C saves at the very step; the last of many resumes has the bits of the run that was left alone."""
    short = long_run.model_copy(update={"seeds": (3, 4)})
    alone = train(short.model_copy(update={"output": str(tmp_path / "alone")}), console=console)
    steps = 0

    def stepped(progress: TrainingProgress, learner: Learner, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps % 41 == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "stepped", stepped)
    with pytest.raises(TrainingInterruptedError, match="--resume") as interrupted:
        train(short, console=console)
    assert interrupted.value.exit_code == 130
    while not RunFolder(Path(short.output)).metrics.exists():
        with contextlib.suppress(TrainingInterruptedError):
            resume(Path(short.output), console=console)
    assert steps > 2 * 41
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "seed 3: goes on at step 2" in printed
    assert (Path(short.output) / "prompt.safetensors").read_bytes() == alone.prompt.read_bytes()


def test_changed_data_is_not_mixed_into_an_old_run(
    long_run: TrainConfig, console: Console, tmp_path: Path
) -> None:
    result = train(long_run.model_copy(update={"optimiser": long_run.optimiser.model_copy(update={"epochs": 1})}),
                   console=console)  # fmt: skip
    (result.folder / "metrics.json").unlink()
    train_file = tmp_path / "train.jsonl"
    train_file.write_text(train_file.read_text().replace("film", "book"))
    with pytest.raises(RunFolderError, match="the train set changed since this run began"):
        resume(result.folder, console=console)


def test_an_edited_dtype_is_not_mixed_into_an_old_run(
    bert: Backbone, settings: Settings, console: Console
) -> None:
    run = Run(settings(), bert, console)
    run.claim({})
    edited = Run(settings(dtype="bfloat16"), bert, console)
    with pytest.raises(RunFolderError, match="the dtype changed since this run began; put back what"):
        edited.claim({})
    run.claim({})
    known = json.loads(run.folder.identity.read_text())
    del known["the dtype"]  # an earlier version did not write it down: its runs are gone on with
    run.folder.identity.write_text(json.dumps(known))
    edited.claim({})


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("prompt.num_virtual_tokens", "num_virtual_tokens = 4", "num_virtual_tokens = 5"),
        ("labels", '["negative", "positive"]', '["positive", "negative"]'),
        ("optimiser.epochs", "epochs = 1", "epochs = 2"),
    ],
)
def test_changed_settings_are_not_mixed_into_an_old_run(
    settings: Settings, console: Console, key: str, before: str, after: str
) -> None:
    result = train(settings(method="p-tuning-v2", optimiser__epochs=1), console=console)
    (result.folder / "metrics.json").unlink()
    file = result.folder / "config.toml"
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))
    with pytest.raises(RunFolderError, match=f"{key} changed since this run began"):
        resume(result.folder, console=console)
    identity = RunFolder(result.folder).identity
    known = json.loads(identity.read_text())
    identity.write_text(json.dumps({name: value for name, value in known.items() if name.startswith("the ")}))
    # Of an earlier version's folder, too, the states tell.
    with pytest.raises(RunFolderError, match="seed-0 was saved with other settings"):
        resume(result.folder, console=console)
    identity.write_text(json.dumps(known))
    file.write_text(text.replace("ensemble = false", "ensemble = false\nrows_at_once = 8"))  # for less memory
    assert resume(result.folder, console=console).version == result.version


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("prompt.init", '["text", "labels", "vocabulary"]', '["random"]'),
        ("head.start", '"probe"', '"random"'),
        ("seeds", "seeds = [0]", "seeds = [0, 1]"),
    ],
)
def test_changed_settings_are_refused_before_any_state_is_saved(
    bert: Backbone, settings: Settings, console: Console, key: str, before: str, after: str
) -> None:
    """Seeds that have not begun would start otherwise than those that are through, and nothing would tell."""
    run = Run(settings(method="p-tuning-v2", seeds=(0,)), bert, console)
    run.begin(new=True)
    file = run.folder.root / "config.toml"
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))
    with pytest.raises(RunFolderError, match=f"{key} changed since this run began; put back what"):
        resume(run.folder.root, console=console)
    file.write_text(text)
    resume(run.folder.root, console=console)


@pytest.mark.parametrize(
    ("method", "network"),
    [("p-tuning-v2", "none"), ("p-tuning", "lstm"), ("prefix-tuning", "mlp"), ("prompt-tuning", "residual")],
)
def test_a_restored_learner_is_the_one_that_was_saved(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    method: str, network: str,
) -> None:  # fmt: skip
    """Also in the score that the next one is compared with, which is not computed again: on other cores it could
    be another.
    """
    run = Run(settings(method=method, prompt__reparameterisation=network), bert, console)
    run.prepare(StopRequest())
    one, other = (next(run.learners()) for _ in range(2))
    for _ in range(3):
        step(bert, [one])
    one.evaluate()
    save_checkpoint(tmp_path / "state", one.state())
    saved = load_checkpoint(tmp_path / "state")
    assert saved is not None
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_score", lambda *_: pytest.fail("scored again"))
        other.restore(saved)
    for learner in (one, other):
        step(bert, [learner])
        learner.evaluate()
    assert one.state().values == other.state().values
    for name, tensor in one.state().tensors.items():
        assert torch.equal(tensor, other.state().tensors[name]), name


def test_a_moved_run_folder_resumes(settings: Settings, console: Console, tmp_path: Path) -> None:
    result = train(settings(optimiser__epochs=1), console=console)
    (result.folder / "metrics.json").unlink()
    moved = tmp_path / "elsewhere"
    shutil.move(result.folder, moved)
    assert resume(moved, console=console).version == result.version


def test_a_torn_checkpoint_is_said_so(settings: Settings, console: Console) -> None:
    result = train(settings(optimiser__epochs=1), console=console)
    (result.folder / "metrics.json").unlink()
    (checkpoint,) = RunFolder(result.folder).state.glob("seed-0.*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    before = result.prompt.read_bytes()
    with pytest.raises(RunFolderError, match=r"not a checkpoint of a run.*delete .*state and resume"):
        resume(result.folder, console=console)
    checkpoint.unlink()
    with pytest.raises(RunFolderError, match=r"the state is gone; delete .*state and resume"):
        resume(result.folder, console=console)
    shutil.rmtree(RunFolder(result.folder).state)  # the advice is true
    assert resume(result.folder, console=console).prompt.read_bytes() == before


def test_there_must_be_something_to_resume(tmp_path: Path, console: Console) -> None:
    with pytest.raises(RunFolderError, match="no run to resume here"):
        resume(tmp_path, console=console)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RunFolderError, match="promptmux sweep --resume"):
        resume(tmp_path, console=console)
