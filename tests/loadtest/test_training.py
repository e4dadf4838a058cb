"""The training benches' own parts; the figures they make are of a quiet machine, and asserted nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from loadtest.training import page
from loadtest.training.__main__ import _ratios, main
from loadtest.training.data import Plan
from loadtest.training.mixture import measure
from loadtest.training.peft_side import SIDES, _model, peft
from loadtest.training.race import ours, seconds_to
from tests.backbone.families import tiny
from tests.trainer.conftest import separable, write_jsonl


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for name, count in (("train", 40), ("dev", 12)):
        write_jsonl(folder / f"{name}.jsonl", separable(count))
    return folder


def test_mixed_and_solo_do_the_same_work(data: Path) -> None:
    done = measure(
        tiny("bert"), data, method="p-tuning-v2", prompts=3, batch_size=4, steps=2, rounds=2,
        console=Console(quiet=True),
    )  # fmt: skip
    assert (done["data"], done["steps"]) == ("films", 2)
    assert set(done["seconds"]) == {"mixed", "solo"}
    assert len(done["ratios"]) == 2
    assert done["times as fast"] > 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers so
@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING"])
def test_peft_at_its_best_starts_as_our_head_scores(data: Path, kind: str) -> None:
    """Before a step that counts: its mean of states and our probe give what the probe has, or near it beside words."""
    plan = Plan(data, None, None, 1, 1, 0)
    curve, probe = ours(plan, "p-tuning-v2")
    assert len(curve) == 1
    side = SIDES[2]
    model = _model(kind, side, 2, probe)
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"weight", "bias"}
    assert all(p.dtype is torch.float32 for p in model.parameters() if p.requires_grad)
    ends = peft(plan, kind, side, lr=1e-9, probe=probe)
    assert ends[0][0] > probe.seconds
    assert ends[0][1] >= 0.5


def test_the_race_is_judged_by_what_both_reached() -> None:
    ours, theirs = [(1.0, 0.6), (2.0, 0.9), (3.0, 0.8)], [(2.0, 0.5), (4.0, 0.7), (8.0, 0.85)]
    assert seconds_to(ours, 0.85) == 2.0
    assert seconds_to(ours, 0.95) is None
    judged = _ratios({"ours": [ours], "peft": [theirs], "peft bf16": [ours], "peft at its best": [theirs]})
    assert judged["against peft"]["rounds"] == [{"accuracy": 0.85, "ours": 2.0, "peft": 8.0, "ratio": 4.0}]
    assert judged["against peft"]["times as fast, same steps"] == pytest.approx(8 / 3)
    assert judged["against peft bf16"]["times as fast"] == 1.0


def test_the_page_shows_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEPT", "PAGE", "PICTURE"):
        monkeypatch.setattr(page, name, tmp_path / f"{name.lower()}.png")
    sides = {
        "ours": [[(1.0, 0.5), (2.0, 0.9)]],
        "peft": [[(5.0, 0.5), (9.0, 0.9)]],
        "peft bf16": [[(4.0, 0.9)]],
        "peft at its best": [[(3.0, 0.9)]],
    }
    machine = {
        "date": "d",
        "commit": "c",
        "cores": 2,
        "cpu": "x",
        "amx": False,
        "gpu": "none",
        "load_average": 0.1,
    }
    common = {"command": "python -m loadtest.training", "machine": machine, "data": "films"}
    rates = {"peft": 0.01, "peft bf16": 0.01, "peft at its best": 0.03}
    race = {"method": "p-tuning-v2", "kind": "PREFIX_TUNING", "lr": rates, "curves": sides, **_ratios(sides)}
    side = {"data": "films", "method": "p-tuning-v2", "prompts": 16, "batch_size": 8, "steps": 10, "ratios": [1.5, 1.4],
            "seconds": {"mixed": [1.0], "solo": [1.5]}, "times as fast": 1.5}  # fmt: skip
    kept = {
        "mixture": {**common, "dtype": "bfloat16", "device": "cpu", "sides": [side]},
        "race": {
            **common,
            "epochs": 3,
            "batch_size": 32,
            "virtual_tokens": 20,
            "lines": 2500,
            "races": [race],
        },
    }
    page.KEPT.write_text(json.dumps(kept))
    text = page.write_page()
    assert "| films | p-tuning-v2 | 16 × 8 | 10 | 1.0 | 1.5 | 1.50 | 1.40 |" in text
    assert "| p-tuning-v2 | PREFIX_TUNING, float32 | 0.01 | 90.0 | 2 | 9 | 4.50 | 4.5 | 4.50 |" in text
    assert "| PREFIX_TUNING, at its best | 0.03 | 90.0 | 2 | 3 | **1.50** | 1.5 | 1.50 |" in text
    assert "films, the first 2,500 texts, 3 epochs" in text
    assert page.PICTURE.stat().st_size > 10_000
    # A race that was kept before a side was added is drawn without it.
    del race["curves"]["peft at its best"], race["against peft at its best"]
    page.KEPT.write_text(json.dumps(kept))
    assert "at its best |" not in page.write_page()


def test_a_missing_data_set_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mixture", "--data", str(tmp_path)]) == 2
    assert "give a data set with --data" in capsys.readouterr().err
