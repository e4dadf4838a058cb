from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from backbone import Backbone
from prompt_store import decode_prompt, version_of
from tests.backbone.families import checkpoint
from tests.trainer.conftest import sentence, separable, write_jsonl
from trainer import (
    ConfigError,
    DataError,
    RunFolderError,
    TrainConfig,
    TrainingFailedError,
    evaluate,
    load_config,
    load_examples,
    train,
)

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("no_drawing")


def _output(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


# Weights of a network want smaller steps than the vectors that it makes.
@pytest.mark.parametrize(
    ("method", "prompt_lr"),
    [
        ("prompt-tuning", 0.05),
        ("p-tuning", 0.02),
        ("prefix-tuning", 0.005),
        ("p-tuning-v2", 0.05),
        ("head-only", 1),
    ],
)
def test_what_is_learned_beats_majority(
    settings: Settings, console: Console, bert: Backbone, method: str, prompt_lr: float
) -> None:
    epochs = (
        30 if method == "p-tuning" else 6
    )  # its encoder has more to learn than this little data shows in six
    config = settings(method=method, optimiser__prompt_lr=prompt_lr, optimiser__epochs=epochs)
    result = train(config, console=console)
    assert result.rows[0].name == "majority"
    assert result.rows[0].scores[0].accuracy == 0.5
    assert result.rows[-1].scores[0].accuracy > 0.6
    data = result.prompt.read_bytes()
    assert version_of(data) == result.version
    prompt = decode_prompt(data)
    assert prompt.manifest.method == method
    # The file itself, loaded as a server loads it, gives the reported score.
    scores = evaluate(bert, prompt, load_examples(settings()).test)
    assert scores == result.rows[-1].scores[0]


def test_hard_prompts_are_only_evaluated(settings: Settings, console: Console) -> None:
    result = train(settings(method="hard-prompt", calibrate=True), console=console)
    prompt = decode_prompt(result.prompt.read_bytes())
    assert list(prompt.tensors) == ["verbalizer.label_embeddings"]
    assert prompt.manifest.calibration is not None
    assert prompt.manifest.calibration.bias is not None
    assert "optimiser" not in prompt.manifest.training["settings"]  # type: ignore[operator]
    assert result.best_seed is None


def test_what_a_method_does_not_use_is_said(settings: Settings) -> None:
    told = Console(file=io.StringIO(), width=200)
    train(
        settings(method="hard-prompt", optimiser__prompt_lr=0.1, prompt__num_virtual_tokens=4), console=told
    )
    said = told.file.getvalue()  # type: ignore[attr-defined]
    assert "note: without effect here: prompt.num_virtual_tokens, optimiser." in said
    assert "optimiser.prompt_lr" in said


def test_verbalizers_are_trained_through_the_language_model_head(
    settings: Settings, console: Console
) -> None:
    config = settings(
        prompt__template="{soft:4}{text} it is {mask} .",
        head__words={"negative": ("bad", "terrible"), "positive": ("good", "great")},
    )
    result = train(config, console=console)
    prompt = decode_prompt(result.prompt.read_bytes())
    assert list(prompt.tensors) == ["soft_prompt"]
    curve = json.loads((result.folder / "metrics.json").read_text())["seeds"][0]["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_texts_that_are_cut_and_a_run_that_diverges_are_said(settings: Settings, console: Console) -> None:
    bad = settings(prompt__max_tokens=2, optimiser__prompt_lr=1e30, optimiser__epochs=1)
    with pytest.raises(
        TrainingFailedError, match=r"smaller optimiser\.prompt_lr, in another --output: \S+run keeps"
    ):
        train(bad, console=console)
    printed = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "note: 176 of 176 texts are longer than their rows, and are cut" in printed


def test_the_run_folder_is_complete(settings: Settings, console: Console) -> None:
    result = train(settings(seeds=(0, 1), golden="train"), console=console)
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "config.toml",
        "metrics.json",
        "table.txt",
        "prompt.safetensors",
        "seeds",
        "state",
    }
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["version"] == result.version
    assert [seed["seed"] for seed in metrics["seeds"]] == [0, 1]
    best = max(metrics["seeds"], key=lambda seed: (seed["dev"]["accuracy"], seed["dev"]["macro_f1"]))
    assert best["seed"] == metrics["best_seed"] == result.best_seed
    assert (
        result.folder / "seeds" / f"seed-{result.best_seed}.safetensors"
    ).read_bytes() == result.prompt.read_bytes()
    table = (result.folder / "table.txt").read_text()
    for name in ("majority", "head only", "prompt-tuning", "±"):
        assert name in table
    assert "test set, 40 examples" in _output(console)


def test_the_same_training_gives_the_same_bytes(settings: Settings, console: Console, tmp_path: Path) -> None:
    results = [
        train(settings(output=str(tmp_path / name), method="p-tuning-v2", golden="train"), console=console)
        for name in ("one", "two")
    ]
    assert results[0].prompt.read_bytes() == results[1].prompt.read_bytes()
    record = json.dumps(decode_prompt(results[0].prompt.read_bytes()).manifest.training)
    assert str(tmp_path) not in record
    other = train(settings(output=str(tmp_path / "three"), method="p-tuning-v2", seeds=(5,)), console=console)
    assert other.version != results[0].version


def test_the_saved_configuration_repeats_the_run(
    settings: Settings, console: Console, tmp_path: Path
) -> None:
    first = train(settings(optimiser__epochs=1), console=console)
    again = load_config(first.folder / "config.toml", {"output": str(tmp_path / "again")})
    assert train(again, console=console).version == first.version


def test_many_labels(settings: Settings, console: Console, tmp_path: Path) -> None:
    words = ("food", "city", "money", "order", "red", "green", "blue", "cold")
    generator = random.Random(0)
    rows = [{"text": sentence([words[at % 8]], generator), "label": words[at % 8]} for at in range(160)]
    path = write_jsonl(tmp_path / "many.jsonl", rows)
    config = settings(data__train=str(path), data__dev=None, data__test=None, method="p-tuning-v2")
    result = train(config, console=console)
    assert decode_prompt(result.prompt.read_bytes()).manifest.labels == tuple(sorted(words))
    assert result.rows[-1].scores[0].accuracy > 0.6


def test_multi_label(settings: Settings, console: Console, tmp_path: Path) -> None:
    words = ("film", "book", "food")
    rows: list[dict[str, object]] = []
    for at in range(128):
        here = [word for bit, word in enumerate(words) if at >> bit & 1]
        rows.append({"text": " ".join(["the", *here, "is", *["not"] * (at % 5)]), "labels": here})
    path = write_jsonl(tmp_path / "multi.jsonl", rows)
    config = settings(
        data__train=str(path),
        data__dev=None,
        data__test=None,
        multi_label=True,
        method="p-tuning-v2",
        golden="train",
    )
    result = train(config, console=console)
    prompt = decode_prompt(result.prompt.read_bytes())
    assert prompt.manifest.multi_label
    assert result.rows[-1].scores[0].accuracy > result.rows[0].scores[0].accuracy + 0.2


def test_text_pairs(settings: Settings, console: Console, tmp_path: Path) -> None:
    words = ("film", "book", "food", "city")
    rows = [
        {
            "text": f"the {words[at % 4]} is good",
            "text_pair": f"one {words[(at % 4 + (at // 4) % 2) % 4]}",
            "label": "different" if (at // 4) % 2 else "same",
        }
        for at in range(64)
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    config = settings(data__train=str(path), data__dev=str(path), data__test=None, data__test_fraction=0.0)
    result = train(config, console=console)
    manifest = decode_prompt(result.prompt.read_bytes()).manifest
    assert manifest.template == "{soft:4}{text} {text_pair}"
    assert "dev set" in (result.folder / "table.txt").read_text()


def test_golden_examples_come_from_the_configuration(settings: Settings, console: Console) -> None:
    golden = (
        {"text": "great film good", "label": "positive"},
        {"text": "good great book", "label": "negative"},
    )
    result = train(settings(golden=golden, method="head-only"), console=console)
    manifest = decode_prompt(result.prompt.read_bytes()).manifest
    assert [example.text for example in manifest.golden] == ["great film good"]
    assert "golden example 2 of 2 is not answered 'negative' and was left out" in _output(console)


def test_no_sentence_of_the_data_gets_into_the_file_unasked(settings: Settings, console: Console) -> None:
    result = train(settings(optimiser__epochs=1), console=console)
    data = result.prompt.read_bytes()
    assert not any(row["text"].encode() in data for row in separable(96) if len(row["text"]) > 12)


def test_a_golden_label_must_be_one_of_the_task(settings: Settings, console: Console) -> None:
    with pytest.raises(ConfigError, match="'neutral' is no label"):
        train(settings(golden=({"text": "x", "label": "neutral"},), method="head-only"), console=console)


def test_a_folder_with_a_run_in_it_is_not_overwritten(settings: Settings, console: Console) -> None:
    train(settings(method="head-only"), console=console)
    with pytest.raises(RunFolderError, match="there is a run in it already"):
        train(settings(method="head-only"), console=console)


def test_an_unknown_backbone_is_one_line(settings: Settings, console: Console, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^backbone: "):
        train(settings(backbone=str(tmp_path / "none")), console=console)


def test_soft_prompts_are_stored_in_half_precision(settings: Settings, console: Console) -> None:
    result = train(settings(optimiser__epochs=1), console=console)
    dtypes = {
        name: tensor.dtype for name, tensor in decode_prompt(result.prompt.read_bytes()).tensors.items()
    }
    assert dtypes == {"soft_prompt": np.float16, "head.0.weight": np.float32, "head.0.bias": np.float32}


def test_evaluate_refuses_what_the_prompt_does_not_know(
    settings: Settings, console: Console, bert: Backbone
) -> None:
    from trainer import Example

    prompt = decode_prompt(train(settings(method="head-only"), console=console).prompt.read_bytes())
    with pytest.raises(DataError, match="knows no label 'x'"):
        evaluate(bert, prompt, [Example("film", None, ("x",))])
    with pytest.raises(DataError, match="takes single texts"):
        evaluate(bert, prompt, [Example("film", "book", ("positive",))])


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama", "albert", "distilbert", "deberta-v2"])
def test_other_families_learn_too(settings: Settings, console: Console, family: str) -> None:
    method = "prompt-tuning" if family in ("gpt2", "albert", "deberta-v2") else "p-tuning-v2"
    result = train(settings(backbone=str(checkpoint(family)), method=method), console=console)
    curve = json.loads((result.folder / "metrics.json").read_text())["seeds"][0]["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert {"gpt2": "soft_prompt", "llama": "prefix.decoder.key"}.get(family) in (
        None,
        *decode_prompt(result.prompt.read_bytes()).tensors,
    )
