"""A run whose prompt is the ensemble of its seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from backbone import Backbone
from prompt_store import decode_prompt, encode_prompt, join_prompts, version_of
from tests.backbone.prompts import manifest, tensors
from trainer import ConfigError, TrainConfig, evaluate, load_examples, train
from trainer.errors import AdapterError
from trainer.peft_export import export_peft

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("no_drawing")
SEEDS = (3, 1, 2)


def test_the_prompt_of_a_run_may_be_all_seeds(settings: Settings, console: Console, bert: Backbone) -> None:
    few = {
        "optimiser__epochs": 1,
        "optimiser__evaluations": 1,
        "optimiser__prompt_lr": 0.5,
        "golden": "train",
    }
    result = train(
        settings(seeds=SEEDS, ensemble=True, method="p-tuning-v2", calibrate=True, **few), console=console
    )
    data = result.prompt.read_bytes()
    prompt = decode_prompt(data)
    files = [(result.folder / "seeds" / f"seed-{seed}.safetensors").read_bytes() for seed in SEEDS]
    assert result.version == version_of(data)
    assert [member.version for member in prompt.manifest.members] == [version_of(file) for file in files]
    assert [member.training["seed"] for member in prompt.manifest.members] == list(SEEDS)
    assert prompt.manifest.training["seeds"] == list(SEEDS)

    # As served: the mean of what the seeds' own files answer.
    examples = load_examples(settings()).test
    rows = bert.row_encoder(prompt.manifest).encode([example.text for example in examples])
    alone = []
    for file in files:
        one = decode_prompt(file)
        assert one.manifest.calibration is not None
        alone.append(np.array(bert.score(rows, [bert.load_prompt(one)] * len(rows))))
    assert np.abs(alone[0] - alone[1]).max() > 0.01, "seeds that answer alike would prove nothing"
    scores = np.array(bert.score(rows, [bert.load_prompt(prompt)] * len(rows)))
    np.testing.assert_allclose(scores, np.mean(alone, axis=0), atol=1e-5)

    # As reported: by the table, by metrics.json, and by whoever evaluates the file.
    right = [prompt.manifest.labels[at] for at in scores.argmax(axis=1)]
    accuracy = np.mean([label in example.labels for label, example in zip(right, examples, strict=True)])
    assert evaluate(bert, prompt, examples) == result.rows[-1].scores[0]
    assert result.rows[-1].scores[0].accuracy == accuracy
    assert [row.name for row in result.rows][-2:] == ["p-tuning-v2", "ensemble of 3"]
    assert "ensemble of 3" in (result.folder / "table.txt").read_text()
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["version"] == result.version
    assert metrics["ensemble"]["test"]["accuracy"] == accuracy
    assert prompt.manifest.training["dev"]["accuracy"] == metrics["ensemble"]["dev"]["accuracy"]  # type: ignore[index,call-overload]
    for golden in prompt.manifest.golden:
        row = bert.row_encoder(prompt.manifest).encode([golden.text])
        assert golden.label in prompt.manifest.chosen_labels(bert.score(row, [bert.load_prompt(prompt)])[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seeds": (0,)}, "ensemble: takes 2 to 16 seeds, got 1"),
        ({"seeds": tuple(range(17))}, "ensemble: takes 2 to 16 seeds, got 17"),
        ({"seeds": (0, 1), "method": "head-only"}, 'ensemble: method = "head-only" has no seeds to join'),
        ({"seeds": (0, 1), "method": "hard-prompt"}, 'ensemble: method = "hard-prompt" has no seeds'),
    ],
)
def test_a_run_without_seeds_to_join_is_refused_at_once(
    settings: Settings, more: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(ensemble=True, **more)


def test_an_ensemble_is_no_peft_folder(bert: Backbone, tmp_path: Path) -> None:
    files = []
    for seed in (0, 1):
        arrays = {name: tensor.numpy() for name, tensor in tensors(bert, soft=2, seed=seed).items()}
        files.append((f"seed {seed}", encode_prompt(manifest(bert, soft=2), arrays)))
    with pytest.raises(AdapterError, match="is an ensemble, and a PEFT folder holds one prompt"):
        export_peft(join_prompts(files), tmp_path / "out")
    assert not (tmp_path / "out").exists()
