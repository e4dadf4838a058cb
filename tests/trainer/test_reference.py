from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.backbone.families import checkpoint
from tests.trainer.conftest import separable, write_jsonl
from trainer.reference import main


def test_full_fine_tuning_learns_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = write_jsonl(tmp_path / "train.jsonl", separable(96))
    arguments = (
        f"--train {train} --dev {train} --test {train} --lr 3e-4 --epochs 4 --seeds 0 --batch-size 16 --output m.json"
    ).split()
    assert main([*arguments, "--backbone", str(checkpoint("bert"))]) == 0
    output = capsys.readouterr().out
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in output.splitlines() if "loss " in line]
    assert losses[-1] < losses[0]
    assert "full fine-tuning: test set" in output
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (
        metrics["summary"]["full fine-tuning"]["accuracy"]["mean"] == metrics["seeds"][0]["test"]["accuracy"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "train.jsonl"]


def test_bad_data_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--train", str(tmp_path / "none.jsonl")]) == 2
    assert "no such file or folder" in capsys.readouterr().out
