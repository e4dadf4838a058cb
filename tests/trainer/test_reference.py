"""The references on a tiny model: they learn, dev chooses, a stopped comparison goes on, and no prompt is left."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from backbone import Backbone
from trainer import (
    RunFolderError,
    TrainConfig,
    TrainingFailedError,
    TrainingInterruptedError,
    load_config,
    load_examples,
    train,
)
from trainer.fine_tuning import FineTuning, Recipe
from trainer.fixed_prompt import bare
from trainer.progress import Bar
from trainer.reference import STRATEGIES, run_references
from trainer.reference_folder import Cell
from trainer.reference_report import tuned_row
from trainer.scores import Scores

Settings = Callable[..., TrainConfig]
FAST = Recipe((3e-4,), epochs=3, batch_size=16, evaluations=3)
WORDS = {"negative": ("bad", "terrible"), "positive": ("good", "great")}
pytestmark = pytest.mark.usefixtures("no_drawing")


def _said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


class _Curve:
    """A listener that keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def stepped(self, step: int, loss: float) -> None:
        self.losses.append(loss)

    def evaluated(self, point: object) -> None:
        pass


def test_all_rows_are_scored_and_no_prompt_is_left(
    settings: Settings, console: Console, tmp_path: Path
) -> None:
    config = settings(head__words=WORDS, prompt__template="{soft:4}{text} it was {mask} .")
    rows = run_references(config, STRATEGIES, (0, 1), console=console, folder=tmp_path / "out", recipe=FAST)
    assert list(rows) == ["majority", "zero-shot", "head-only", "full-fine-tuning", "fixed-prompt"]
    assert rows["majority"].scores[0].accuracy == 0.5
    for name in ("full-fine-tuning", "fixed-prompt"):
        assert len(rows[name].scores) == 2
        assert rows[name].summary()["accuracy"]["mean"] > 0.6
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    cells = {f"cells/{name}-lr-0.0003-seed-{seed}.json" for name in STRATEGIES[1:] for seed in (0, 1)}
    assert files == cells | {
        "cells/zero-shot.json", "cells/head-only.json", "metrics.json", "settings.json", "table.txt",
    }  # fmt: skip
    assert "no prompt file to publish" in _said(console)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["summary"]["full fine-tuning"] == rows["full-fine-tuning"].summary()
    assert metrics["settings"]["the recipe"]["epochs"] == 3
    assert metrics["data"]["digests"] == load_examples(config).digests()
    assert "±" in (tmp_path / "out" / "table.txt").read_text()


def test_head_only_is_the_head_only_of_training(settings: Settings, console: Console, tmp_path: Path) -> None:
    config = settings(method="head-only")
    rows = run_references(config, ["head-only"], console=console, folder=tmp_path / "out", recipe=FAST)
    assert rows["head-only"].scores == train(config, console=console).rows[-1].scores


def test_a_finished_seed_is_not_trained_again(
    settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second seed keeps the first; the end is that of a comparison that was left alone."""
    config, steps = settings(), 0
    strategies = ("full-fine-tuning",)

    def run(folder: str) -> Any:
        return run_references(
            config, strategies, (0, 1), console=console, folder=tmp_path / folder, recipe=FAST
        )

    alone = run("alone")

    def stepped(bar: Bar, step: int, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Bar, "stepped", stepped)
    with pytest.raises(TrainingInterruptedError, match="same command again") as stopped:
        run("killed")
    assert stopped.value.exit_code == 130
    assert steps == 20
    again = run("killed")
    assert steps == 20 + 18  # the second seed alone: 96 examples in batches of 16, three times
    assert "full-fine-tuning-lr-0.0003-seed-0: kept from before" in _said(console)
    assert {name: row.scores for name, row in again.items()} == {
        name: row.scores for name, row in alone.items()
    }


def test_what_is_kept_belongs_to_its_data_and_recipe(
    settings: Settings, console: Console, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run_references(settings(), ["head-only"], console=console, folder=folder, recipe=FAST)
    with pytest.raises(RunFolderError, match=r"the recipe changed .* choose another --output"):
        run_references(settings(), ["head-only"], console=console, folder=folder)
    words = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(words.replace("film", "book"))
    with pytest.raises(RunFolderError, match="the train set changed"):
        run_references(settings(), ["head-only"], console=console, folder=folder, recipe=FAST)


def test_a_run_folders_settings_serve_and_what_counts_not_is_said(
    settings: Settings, console: Console, tmp_path: Path
) -> None:
    config = settings(method="prefix-tuning", prompt__encoder_hidden_size=16, optimiser__epochs=1)
    trained = train(config, console=console)
    again = load_config(trained.folder / "config.toml", {"output": "unused"})
    for given, says in (
        (
            again,
            "prompt.encoder_hidden_size, head.type, optimiser (the recipe's are --lr, --epochs and --batch-size)",
        ),
        (config, "without effect here: prompt.num_virtual_tokens, prompt.encoder_hidden_size, optimiser ("),
    ):
        folder = tmp_path / f"references-{given.output}".replace("/", "-")
        rows = run_references(given, ["head-only"], console=console, folder=folder, recipe=FAST)
        assert rows["head-only"].scores[0].accuracy == trained.rows[1].scores[0].accuracy
        assert says in _said(console)
    plain = load_config(None, {"task_id": "t", "output": "unused", "data.train": config.data.train})
    quiet = Console(file=io.StringIO(), width=200)
    update = {"backbone": config.backbone, "prompt": {"template": "{text} it was ."}}
    plain = TrainConfig.model_validate({**plain.model_dump(), **update})
    run_references(plain, ["head-only"], console=quiet, folder=tmp_path / "plain", recipe=FAST)
    assert "without effect" not in _said(quiet)


def test_a_learning_rate_that_diverges_is_left_out(
    settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = FineTuning._gradients

    def diverging(training: FineTuning, rows: Any, targets: torch.Tensor) -> float:
        found = gradients(training, rows, targets)
        return found if training._lr < 0.5 else torch.nan

    monkeypatch.setattr(FineTuning, "_gradients", diverging)
    recipe = replace(FAST, learning_rates=(0.9, 3e-4))
    strategies = ["full-fine-tuning"]
    rows = run_references(
        settings(),
        strategies,
        (0, 1),
        console=console,
        folder=tmp_path / "out",
        recipe=recipe,  # type: ignore[arg-type]
    )
    assert rows["full-fine-tuning"].lr == 3e-4
    assert len(rows["full-fine-tuning"].scores) == 2
    assert "full fine-tuning: learning rate 0.9 is left out: seed 0, step " in _said(console)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {seed["lr"] for seed in metrics["seeds"]} == {3e-4}
    recipe = replace(FAST, learning_rates=(0.9,))
    with pytest.raises(TrainingFailedError, match="use a smaller learning rate"):
        run_references(
            settings(),
            strategies,
            console=console,
            folder=tmp_path / "none",
            recipe=recipe,  # type: ignore[arg-type]
        )


def _scores(accuracy: float) -> Scores:
    return Scores(10, accuracy, accuracy, (), ())


def test_dev_chooses_the_learning_rate_and_test_does_not() -> None:
    cells = [
        Cell(f"{lr}-{seed}", seed, lr, _scores(dev), _scores(test), (), 1, 2.0)
        for lr, dev, test in ((0.1, 0.7, 0.9), (0.2, 0.8, 0.1), (0.3, 0.8, 0.99))
        for seed in (0, 1)
    ]
    row, lines = tuned_row("full-fine-tuning", cells, (0.1, 0.2, 0.3))
    assert row.lr == 0.2  # best on dev, the first of equals
    assert [scores.accuracy for scores in row.scores] == [0.1, 0.1]
    assert row.seconds == 12.0
    assert "0.2, chosen on dev" in lines[0]


def test_the_best_evaluation_is_reported_with_its_own_weights(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, bert: Backbone
) -> None:
    config = settings()
    data = load_examples(config)
    training = FineTuning(config.backbone, "cpu", data, bare(config, data, bert).start, FAST, lr=3e-4, seed=0)
    scored: list[tuple[str, list[torch.Tensor]]] = []

    def fake(split: str) -> Scores:
        scored.append((split, [p.detach().clone() for p in training._parameters]))
        return _scores({1: 0.6, 2: 0.9, 3: 0.8}.get(len(scored), 0.5))

    monkeypatch.setattr(training, "_score", fake)
    tuned = training.run(listener=_Curve())
    assert tuned is not None
    assert (tuned.dev.accuracy, [split for split, _ in scored]) == (0.9, ["dev", "dev", "dev", "test"])
    for best, reported, last in zip(scored[1][1], scored[3][1], scored[2][1], strict=True):
        assert torch.equal(best, reported)
        assert best.numel() < 24 or not torch.equal(last, reported)
