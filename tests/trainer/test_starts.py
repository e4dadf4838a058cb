"""A start from what was learned before loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from backbone import Backbone
from prompt_store import LinearHead, LinearLayer, decode_prompt, encode_prompt
from tests.backbone.seq2seq import checkpoint, tiny
from trainer import ConfigError, TrainConfig, train
from trainer.errors import RunFolderError
from trainer.interrupt import StopRequest
from trainer.learner import Learner
from trainer.run import Run
from trainer.run_folder import RunFolder
from trainer.state import load_checkpoint

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("no_drawing")


def _learner(config: TrainConfig, backbone: Backbone, console: Console) -> Learner:
    run = Run(config, backbone, console)
    run.prepare(StopRequest())
    (learner,) = run.learners()
    return learner


@pytest.mark.parametrize(
    "method", ["prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2"]
)  # each trains other tensors
def test_a_warm_start_goes_on_bit_for_bit(
    method: str, bert: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    done = train(settings(method=method, optimiser__prompt_lr=0.01), console=console)
    saved = load_checkpoint(RunFolder(done.folder).learned(0))
    assert saved is not None
    again = settings(
        method=method,
        output=str(tmp_path / "again"),
        prompt__init_from=str(done.folder),
        head__start="source",
    )
    learner = _learner(again, bert, console)
    assert {f"raw/{name}" for name in learner.parameters} == {
        n for n in saved.tensors if n.startswith("raw/")
    }
    for name, tensor in learner.parameters.items():
        assert torch.equal(tensor, saved.tensors[f"raw/{name}"]), name
    best = max((row.scores[0] for row in done.rows if row.name == method), key=lambda s: s.accuracy)
    assert best.accuracy > 0.6
    before = learner.evaluate()
    assert before is not None
    curve = _points(done.folder)
    assert before.dev_accuracy == max(point["dev_accuracy"] for point in curve)


def test_a_head_that_goes_on_reads_where_it_read(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    """A head that was trained for a mask behind words says little of a mean over the text."""
    written = {"template": "{soft:2} {text} film {soft:2} is {mask}", "pooling": "mask"}
    done = train(settings(**{f"prompt__{key}": value for key, value in written.items()}), console=console)
    again = settings(
        output=str(tmp_path / "again"), prompt__init_from=str(done.folder), head__start="source",
        prompt__num_virtual_tokens=None,
    )  # fmt: skip
    learner = _learner(again, bert, console)
    before = learner.evaluate()
    assert before is not None
    assert before.dev_accuracy == max(point["dev_accuracy"] for point in _points(done.folder)) > 0.6
    # What is said is done, and a head that is made anew takes nothing over.
    for other in (
        {"prompt__template": "{soft:4}{text}", "prompt__pooling": "mean"},
        {"head__start": "probe"},
    ):
        run = Run(again.model_copy(update=_nested(again, other)), bert, console)
        assert (run.config.prompt.template, run.config.prompt.pooling) == ("{soft:4}{text}", "mean")


def test_a_head_that_reads_virtual_tokens_too_is_refused(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    done = decode_prompt(train(settings(optimiser__epochs=1), console=console).prompt.read_bytes())
    row = done.manifest.model_copy(update={"pooling": "row", "golden": ()})
    (tmp_path / "row.safetensors").write_bytes(encode_prompt(row, dict(done.tensors)))
    again = settings(
        output=str(tmp_path / "b"), head__start="source", prompt__init_from=str(tmp_path / "row.safetensors")
    )
    with pytest.raises(ConfigError, match="the mean over virtual tokens and text"):
        Run(again, bert, console)


def _nested(config: TrainConfig, changes: dict[str, str]) -> dict[str, object]:
    """What `model_copy` takes for changes of sections."""
    sections: dict[str, dict[str, str]] = {}
    for key, value in changes.items():
        section, name = key.split("__")
        sections.setdefault(section, {})[name] = value
    return {section: getattr(config, section).model_copy(update=own) for section, own in sections.items()}


def _points(folder: Path) -> list[dict[str, float]]:
    curve: list[dict[str, float]] = json.loads((folder / "metrics.json").read_text())["seeds"][0]["curve"]
    return curve


def test_another_network_starts_from_the_same_prompt_in_full_precision(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    done = train(settings(method="p-tuning-v2"), console=console)
    learner = _learner(
        settings(method="prefix-tuning", output=str(tmp_path / "again"), prompt__init_from=str(done.folder)),
        bert,
        console,
    )
    (folded,) = learner.folded()
    stored = decode_prompt(done.prompt.read_bytes()).tensors["prefix.encoder.key"]
    saved = load_checkpoint(RunFolder(done.folder).learned(0))
    assert saved is not None
    exact = saved.tensors["prompt/prefix.encoder.key"]
    assert np.abs(exact.numpy() - stored).max() > 0  # half precision lost something
    torch.testing.assert_close(folded["prefix.encoder.key"], exact, rtol=1e-4, atol=1e-5)


def test_a_head_of_other_labels_is_refused(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    done = train(settings(method="p-tuning-v2"), console=console)
    other = settings(
        method="p-tuning-v2", output=str(tmp_path / "b"), prompt__init_from=str(done.folder), head__start="source",
        labels=("positive", "negative"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="other labels, or in another order"):
        _learner(other, bert, console)
    alone = settings(method="p-tuning-v2", output=str(tmp_path / "c"), head__start="source")
    with pytest.raises(ConfigError, match="name a prompt there"):
        _learner(alone, bert, console)


def test_a_prefix_for_other_stacks_is_refused_before_anything_is_computed(
    settings: Settings, console: Console, tmp_path: Path
) -> None:
    """What the decoder reads decides which stacks a prefix is for."""
    t5 = {"backbone": str(checkpoint("t5")), "method": "p-tuning-v2", "optimiser__epochs": 1}
    done = train(settings(**t5), console=console)
    again = settings(
        **t5, output=str(tmp_path / "b"), prompt__init_from=str(done.folder), prompt__decoder="start"
    )
    with pytest.raises(
        ConfigError, match=r"^prompt.init_from: that prompt has a prefix for encoder, and .* decoder "
    ):
        Run(again, tiny("t5"), console)


def test_a_head_of_other_layers_is_refused(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    """What came from PEFT may have a head of two layers, and the one that is trained has one."""
    done = decode_prompt(
        train(settings(method="p-tuning-v2", optimiser__epochs=1), console=console).prompt.read_bytes()
    )
    width = bert.shape.hidden_size
    layers = (
        LinearLayer(in_features=width, out_features=width, activation="tanh"),
        *done.manifest.head.layers,
    )
    manifest = done.manifest.model_copy(update={"head": LinearHead(layers=layers), "golden": ()})
    own = dict(done.tensors)
    own |= {f"head.1.{kind}": own[f"head.0.{kind}"] for kind in ("weight", "bias")}
    own |= {"head.0.weight": np.eye(width, dtype=np.float32), "head.0.bias": np.zeros(width, np.float32)}
    (tmp_path / "deep.safetensors").write_bytes(encode_prompt(manifest, own))
    again = settings(method="p-tuning-v2", output=str(tmp_path / "b"), head__start="source",
                     prompt__init_from=str(tmp_path / "deep.safetensors"))  # fmt: skip
    with pytest.raises(ConfigError, match="has other layers than the one that is trained here"):
        Run(again, bert, console)


def test_a_run_that_goes_on_starts_its_later_seeds_from_the_same_numbers(
    settings: Settings, bert: Backbone, console: Console, tmp_path: Path
) -> None:
    """A run folder has them in full precision, its published file has not, and the version is one."""
    first = train(settings(), console=console)
    again = settings(output=str(tmp_path / "again"), prompt__init_from=str(first.folder))
    Run(again, bert, console).begin(new=True)
    Run(again, bert, console).begin(new=False)
    for learned in first.folder.glob("seeds/*.learned.safetensors"):
        learned.unlink()
    with pytest.raises(RunFolderError, match=r"what prompt\.init_from leads to"):
        Run(again, bert, console).begin(new=False)


def test_an_ensemble_that_no_file_can_hold_is_refused_before_it_is_trained(
    settings: Settings, bert: Backbone, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.starts.MAX_BYTES", 2000)
    one = settings(seeds=(0, 1))
    Run(one, bert, console)
    with pytest.raises(
        ConfigError, match=r"cannot be trained: ensemble: 2 prompts of \d+ bytes, and .* 2000"
    ):
        Run(settings(seeds=(0, 1), ensemble=True), bert, console)


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning-v2"])
def test_a_prompt_that_no_file_can_hold_is_refused_before_it_is_trained(
    method: str, settings: Settings, bert: Backbone, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_store.header.MAX_HEADER", 500)
    with pytest.raises(ConfigError, match="cannot be trained: header: expected at most 500 bytes"):
        Run(settings(method=method), bert, console)


def test_a_description_that_no_manifest_can_hold_is_one_line(
    settings: Settings, bert: Backbone, console: Console
) -> None:
    words = {"negative": "bad", "positive": "good " * 1000}
    kind = {"head__type": "label_embeddings", "head__descriptions": words}
    with pytest.raises(ConfigError, match=r"no valid prompt: descriptions\.1: .* at most 4096 characters"):
        Run(settings(**kind), bert, console)
