"""`promptmux reference`, and publishing what does not beat its floors, as a person uses them."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from prompt_store import decode_prompt, encode_prompt
from promptmux.commands import reference, sweep, train
from tests.backbone.families import checkpoint
from tests.promptmux.test_commands import here, one_line, run
from tests.server.fakes import prompt_bytes
from tests.trainer.conftest import separable, write_jsonl
from trainer import (
    ConfigError,
    DataError,
    NotAllPublishedError,
    RunFolderError,
    TrainingInterruptedError,
)
from trainer.progress import TrainingProgress


def _poor(folder: Path) -> Path:
    prompt = decode_prompt(prompt_bytes())
    floors = {"majority": {"accuracy": 0.5}, "head_only": {"accuracy": 0.75}}
    record: dict[str, Any] = {"dev": {"accuracy": 0.75}, "dev_floors": floors}
    file = folder / "poor.safetensors"
    manifest = prompt.manifest.model_copy(update={"method": "p-tuning-v2", "training": record})
    file.write_bytes(encode_prompt(manifest, dict(prompt.tensors)))
    return file


def test_a_prompt_that_beats_nothing_is_refused_and_can_be_forced(tmp_path: Path) -> None:
    file, store = _poor(tmp_path), str(tmp_path / "store")
    refused = run("publish", str(file), "--store", store)
    assert refused.returncode == 1
    assert "75.0 %, which does not beat the 75.0 % of head only" in refused.stderr
    assert "what to do: " in refused.stderr
    assert "Traceback" not in refused.stderr
    forced = here("publish", str(file), "--store", store, "--force")
    assert forced.returncode == 0, forced.stderr
    assert "note: forced: on dev" in forced.stdout


def test_going_on_with_what_is_finished_says_how_it_can_be_published(tmp_path: Path) -> None:
    data, folder = write_jsonl(tmp_path / "train.jsonl", separable(60)), tmp_path / "run"
    own = ["train", "--task", "t", "--method", "head-only", "--train", str(data), "--set", "device=cpu"]
    assert here(*own, "--backbone", str(checkpoint("bert")), "--output", str(folder)).returncode == 0
    prompt = folder / "prompt.safetensors"
    said = one_line(here("train", "--resume", str(folder))).rstrip()
    assert said.endswith(f"this run is finished; publish it with: promptmux publish {prompt}")
    prompt.write_bytes(_poor(tmp_path).read_bytes())
    said = one_line(here("train", "--resume", str(folder))).rstrip()
    assert "which does not beat the 75.0 % of head only" in said
    assert said.endswith(f"promptmux publish {prompt} --force")


def test_references_are_one_processs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", separable(60))
    for name, value in (
        ("WORLD_SIZE", "2"),
        ("RANK", "1"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    refused = one_line(here("reference", "--train", str(data), "--output", str(tmp_path / "out")))
    assert "references are computed by one process" in refused
    assert not (tmp_path / "out").exists()


def test_where_the_result_cannot_go_is_said_first_and_what_may_come_later_last(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", separable(60))
    own = ["train", "--task", "t", "--method", "head-only", "--train", str(data)]
    own += ["--backbone", str(checkpoint("bert")), "--output", str(tmp_path / "run"), "--set", "device=cpu"]
    slip = here(*own, "--publish", "nonsense://x")
    assert (slip.returncode, slip.stderr.count("\n")) == (2, 1)
    assert "--publish: 'nonsense://x': unknown kind of store" in slip.stderr
    assert not (tmp_path / "run").exists()
    away = here(*own, "--publish", "http://127.0.0.1:9", "--alias", "next", "--force")
    assert away.returncode == 1
    assert (tmp_path / "run" / "prompt.safetensors").is_file()
    file = tmp_path / "run" / "prompt.safetensors"
    assert f"promptmux publish {file} --server http://127.0.0.1:9 --alias next --force" in away.stderr


def test_one_file_of_several_that_is_refused_leaves_none_of_the_others(tmp_path: Path) -> None:
    poor, better, store = _poor(tmp_path), tmp_path / "better.safetensors", str(tmp_path / "store")
    better.write_bytes(prompt_bytes())
    done = here("publish", str(poor), str(tmp_path / "gone"), str(better), "--store", store)
    assert done.returncode == 1
    assert done.stdout.startswith("published")
    assert f"{poor}: " in done.stderr
    assert "what to do: " in done.stderr.lower()
    assert "No such file" in done.stderr
    assert "2 of 3 prompts were not published" in done.stderr


def test_of_many_tasks_those_that_are_better_are_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that is refused comes first, and stops nothing."""
    write_jsonl(tmp_path / "train.jsonl", separable(120))
    (tmp_path / "many.toml").write_text(
        f"""
output = "runs"
[defaults]
backbone = "{checkpoint("bert")}"
device = "cpu"
dtype = "float32"
seeds = [0]
data.train = "train.jsonl"
[[task]]
task_id = "poor"
method = "p-tuning-v2"
optimiser = {{epochs = 1, prompt_lr = 1e-6, head_lr = 0.0, evaluations = 1}}
[[task]]
task_id = "better"
method = "head-only"
"""
    )
    store = tmp_path / "store"
    with pytest.raises(NotAllPublishedError, match=r"2 of 2 prompts were not published"):
        train.run(config=tmp_path / "many.toml", publish="redis://localhost:1/0")
    assert capsys.readouterr().out.count("not published to") == 1
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(NotAllPublishedError, match=r"1 of 2 prompts were not published"):
        train.run(config=tmp_path / "many.toml", publish=str(store))
    said = capsys.readouterr().out
    assert "published better" in said
    assert "poor" in said
    assert "which does not beat" in said
    shown = here("tasks", "--store", str(store)).stdout
    assert ("better" in shown, "poor" in shown) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"config": Path("run.toml")}, "leave out CONFIG, or"),
        ({"epochs": 3, "set_": ["head.scale=2.0"]}, "leave out optimiser.epochs, head.scale, or"),
    ],
)
def test_settings_with_resume_are_refused(tmp_path: Path, arguments: dict[str, Any], named: str) -> None:
    """They would be ignored: the folder has its own."""
    with pytest.raises(ConfigError, match=named):
        train.run(resume=tmp_path, **arguments)
    with pytest.raises(RunFolderError, match="no run to resume here"):
        train.run(resume=tmp_path, publish="store", alias="next", force=True)
    with pytest.raises(ConfigError, match="leave out --grid, or"):
        sweep.run(resume=tmp_path, grid=["optimiser.prompt_lr=1,2"])


def test_the_command_to_go_on_publishes_as_the_interrupted_one_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", separable(64))

    def interrupted(progress: TrainingProgress) -> TrainingProgress:
        signal.raise_signal(signal.SIGTERM)
        return progress

    monkeypatch.setattr(TrainingProgress, "__enter__", interrupted)
    with pytest.raises(TrainingInterruptedError) as caught:
        train.run(
            task="t", train=str(file), backbone=str(checkpoint("bert")), seeds="0", output=str(tmp_path / "run"),
            publish="redis://:secret@host/0", alias="next", force=True,
        )  # fmt: skip
    command = str(caught.value).partition("Go on with: ")[2]
    assert command.startswith(f"promptmux train --resume {tmp_path / 'run'} --publish ")
    assert command.endswith(" --alias next --force")
    assert "secret" not in command


def test_a_sweep_is_gated_as_a_run_is_and_ends_as_one(tmp_path: Path) -> None:
    """Head and prompt stand still, so that nothing is better than the linear head that it starts from."""
    data, store = write_jsonl(tmp_path / "train.jsonl", separable(64)), tmp_path / "store"
    settings = {
        "device": "cpu", "dtype": "float32", "prompt.num_virtual_tokens": 2, "optimiser.head_lr": 0,
        "optimiser.epochs": 1, "optimiser.evaluations": 1,
    }  # fmt: skip
    own = [
        "sweep",
        "--task",
        "t",
        "--train",
        str(data),
        "--backbone",
        str(checkpoint("bert")),
        "--seeds",
        "0",
    ]
    own += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    own += ["--grid", "optimiser.prompt_lr=1e-12,1e-13", "--grid", "method=prompt-tuning,p-tuning-v2"]
    refused = here(*own, "--publish", str(store), "--output", str(tmp_path / "out"))
    assert refused.returncode == 1, refused.stderr
    assert "does not beat" in refused.stderr
    assert not store.exists()
    assert "best: " in refused.stdout
    assert (tmp_path / "out" / "sweep.png").is_file()
    again = here(*own, "--publish", str(store), "--output", str(tmp_path / "again"), "--force")
    assert again.returncode == 0, again.stderr
    assert "(forced: on dev " in again.stdout
    assert "t" in here("tasks", "--store", str(store)).stdout


def test_references_are_scored_and_leave_no_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", separable(64))
    arguments: dict[str, Any] = {
        "train": str(file), "backbone": str(checkpoint("bert")), "seeds": "3", "epochs": 1, "batch_size": 16,
        "strategy": "full-fine-tuning, head-only", "output": tmp_path / "out", "lr": "3e-4,1e-4",
    }  # fmt: skip
    reference.run(**arguments)
    said = capsys.readouterr().out
    for row in ("majority", "zero-shot", "head only", "full fine-tuning", "chosen on dev"):
        assert row in said
    assert "fixed prompt" not in said
    assert not list(tmp_path.rglob("*.safetensors"))
    reference.run(**arguments)
    assert "full-fine-tuning-lr-0.0001-seed-3: kept from before" in capsys.readouterr().out


def test_what_references_cannot_do_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        reference.run(train=str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match=r"strategy: half-tuning; there are head-only, full-fine-tuning"):
        reference.run(train="x.jsonl", strategy="half-tuning")
    with pytest.raises(ConfigError, match="--lr: expected numbers"):
        reference.run(train="x.jsonl", lr="fast")
    with pytest.raises(ConfigError, match="lr: expected different learning rates"):
        reference.run(train="x.jsonl", lr="5e-5,5e-5")
