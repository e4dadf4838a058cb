"""What is written of learners' states, and what is tidied up; that a run goes on from them is in test_resume.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from backbone import Backbone
from trainer import TrainConfig
from trainer.checkpoints import Checkpoints
from trainer.errors import RunFolderError
from trainer.interrupt import StopRequest
from trainer.learner import Learner
from trainer.mixture import step
from trainer.run import Run
from trainer.state import Checkpoint, save_checkpoint

Settings = Callable[..., TrainConfig]


@pytest.fixture
def learners(bert: Backbone, settings: Settings, console: Console) -> list[Learner]:
    run = Run(settings(seeds=(0, 1)), bert, console)
    run.prepare(StopRequest())
    return list(run.learners())


def test_only_states_that_changed_are_written(
    learners: list[Learner], bert: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def save(path: Path, state: Checkpoint) -> None:
        written.append(path.name)
        save_checkpoint(path, state)

    monkeypatch.setattr("trainer.checkpoints.save_checkpoint", save)
    checkpoints, (one, other) = Checkpoints(tmp_path / "state"), learners
    checkpoints.save(learners)
    assert written == ["seed-0.0.safetensors", "seed-1.0.safetensors"]
    step(bert, [other])
    checkpoints.save(learners)
    assert written[2:] == ["seed-1.1.safetensors"]
    one.failure = "diverged, and stands where it stood"
    checkpoints.save(learners)
    # Not over the file that the index still names: a kill between the two would leave states of two moments.
    assert written[3:] == ["seed-0.0.failed.safetensors"]
    index = json.loads(checkpoints.index.read_text())
    assert index == {"seed-0": "seed-0.0.failed.safetensors", "seed-1": "seed-1.1.safetensors"}
    assert {path.name for path in checkpoints.index.parent.glob("*.safetensors")} == set(index.values())
    again = Checkpoints(tmp_path / "state")
    again.restore(one)
    assert one.failure == "diverged, and stands where it stood"
    again.forget(["seed-0"])
    again.save([one])
    assert written[4:] == ["seed-0.0.failed.safetensors"]


def test_a_folder_in_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(RunFolderError, match=r"a-file/run/state/index\.json: Not a directory"):
        Checkpoints(tmp_path / "a-file" / "run" / "state")


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    state = tmp_path / "run" / "state"
    state.mkdir(parents=True)
    (state / ".seed-0.7.safetensors.4711.tmp").write_bytes(b"half")
    (state / "seed-0.3.safetensors").write_bytes(b"whole")
    Checkpoints(state)
    assert {path.name for path in state.iterdir()} == {"lock", "seed-0.3.safetensors"}
