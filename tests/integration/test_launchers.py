"""`promptmux train` under torchrun and accelerate launch: two processes on this machine, by the real launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import trainer
from prompt_store import decode_prompt
from tests.backbone.families import checkpoint
from tests.trainer.conftest import separable, write_jsonl

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
# So called, it starts processes without a GPU as well; with --cpu it leaves that to mpirun.
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]  # fmt: skip
FILE = """
output = "{output}"
[defaults]
backbone = "{backbone}"
device = "cpu"
dtype = "float32"
seeds = [0]
prompt.num_virtual_tokens = 3
[defaults.optimiser]
epochs = {epochs}
batch_size = 16
evaluations = {epochs}
patience = {epochs}
[[task]]
task_id = "film"
data.train = "film.jsonl"
[[task]]
task_id = "book"
method = "p-tuning-v2"
data.train = "book.jsonl"
"""


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Launchers that end with the test, and their processes with them."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        if process.poll() is None:
            process.terminate()  # it ends those that it started, with SIGKILL after half a minute
        process.communicate(timeout=600)


def _launch(launcher: list[str], folder: Path, file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, "promptmux", "train", str(file)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _file(folder: Path, output: str, epochs: int) -> Path:
    write_jsonl(folder / "film.jsonl", separable(64))
    write_jsonl(folder / "book.jsonl", separable(48, seed=4))
    path = folder / f"{output}.toml"
    path.write_text(FILE.format(output=output, backbone=checkpoint("bert"), epochs=epochs))
    return path


def _same(one: Path, other: Path) -> None:
    for task_id in ("film", "book"):
        ours, theirs = (
            decode_prompt((f / task_id / "prompt.safetensors").read_bytes()) for f in (one, other)
        )
        assert ours.manifest.training["dev"] == theirs.manifest.training["dev"]
        for name, tensor in ours.tensors.items():  # stored in half precision
            np.testing.assert_allclose(
                np.asarray(tensor, np.float64),
                np.asarray(theirs.tensors[name], np.float64),
                rtol=2e-2,
                atol=2e-3,
            )
        summaries = [json.loads((f / task_id / "metrics.json").read_text())["summary"] for f in (one, other)]
        assert summaries[0] == summaries[1]


def test_accelerate_launch_trains_what_one_process_trains(
    tmp_path: Path, launched: list[subprocess.Popen[str]]
) -> None:
    launched.append(process := _launch(ACCELERATE, tmp_path, _file(tmp_path, "two", 2)))
    alone = trainer.load_many(_file(tmp_path, "one", 2))
    trainer.train_many(alone, console=Console(quiet=True))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert printed.count("accuracy % on the set that each task reports") == 1  # one process alone speaks
    _same(tmp_path / "two", tmp_path / "one")


def test_terminated_under_torchrun_it_is_saved_and_goes_on_in_one_process(
    tmp_path: Path, launched: list[subprocess.Popen[str]]
) -> None:
    launched.append(process := _launch(TORCHRUN, tmp_path, _file(tmp_path, "two", 30)))
    while not (tmp_path / "two" / "state" / "index.json").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert (
        printed.count("promptmux: interrupted; the tasks are saved. Go on with: promptmux train --resume")
        == 1
    )
    result = trainer.resume_many(tmp_path / "two", console=Console(quiet=True))
    assert list(result.finished) == ["film", "book"]
    for folder in result.finished.values():  # from the first evaluation to the last, none twice
        (seed,) = json.loads(folder.metrics.read_text())["seeds"]
        assert [point["epoch"] for point in seed["curve"]] == list(range(1, 31))
