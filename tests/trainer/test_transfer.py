"""A start from another task's prompt: where it is found, what is refused, and that training begins at its values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from backbone import Backbone
from prompt_store import Target, decode_prompt, encode_prompt, join_prompts, open_store, version_of
from tests.backbone.families import tiny
from trainer import ConfigError, TrainConfig, load_config, load_examples, train
from trainer.manifests import build_manifest
from trainer.methods import resolve
from trainer.transfer import read_source

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture
def source(settings: Settings, bert: Backbone, tmp_path: Path) -> Path:
    """A folder as a finished prompt-tuning run leaves it, as far as it is read here; 4 virtual tokens."""
    config = settings(task_id="first")
    data = load_examples(config)
    random = np.random.default_rng(0)
    tensors = {
        "soft_prompt": random.normal(size=(4, bert.shape.embedding_width)).astype(np.float16),
        "head.0.weight": random.normal(size=(2, bert.shape.hidden_size)).astype(np.float32),
        "head.0.bias": np.zeros(2, np.float32),
    }
    folder = tmp_path / "source"
    folder.mkdir()
    manifest = build_manifest(resolve(config, data, bert), data, bert)
    (folder / "prompt.safetensors").write_bytes(encode_prompt(manifest, tensors))
    return folder


def publish(store: Path, data: bytes, alias: str = "current") -> None:
    async def put() -> None:
        opened = open_store(str(store))
        published = await opened.publish(data)
        await opened.set_alias(published.task_id, alias, [Target(published.version)], expected_revision=None)
        await opened.aclose()

    asyncio.run(put())


def test_files_run_folders_and_stores_give_the_same_prompt(source: Path, tmp_path: Path) -> None:
    data = (source / "prompt.safetensors").read_bytes()
    publish(tmp_path / "store", data, "canary")
    store = f"{tmp_path}/store"
    for where in (
        str(source), str(source / "prompt.safetensors"), f"first:canary@{store}",
        f"first:{version_of(data)}@{(tmp_path / 'store').as_uri()}",
    ):  # fmt: skip
        found = read_source(where)
        assert found.version == version_of(data), where
        assert found.kind == "soft"
    with pytest.raises(ConfigError, match="has no alias or version current"):
        read_source(f"first@{store}")


@pytest.mark.parametrize("network", ["none", "residual"])
def test_training_begins_at_its_values_with_a_head_of_its_own(
    settings: Settings, console: Console, source: Path, tmp_path: Path, network: str
) -> None:
    """With a learning rate of next to nothing, what comes out is what went in."""
    result = train(
        settings(
            output=str(tmp_path / "second"), task_id="second", prompt__init_from=str(source),
            prompt__num_virtual_tokens=None, prompt__reparameterisation=network,
            optimiser__prompt_lr=1e-9, optimiser__epochs=1,
        ),
        console=console,
    )  # fmt: skip
    start = decode_prompt((source / "prompt.safetensors").read_bytes())
    made = decode_prompt(result.prompt.read_bytes())
    assert made.tensors["soft_prompt"].shape[0] == 4
    assert np.allclose(made.tensors["soft_prompt"], start.tensors["soft_prompt"], atol=1e-3)
    assert not np.array_equal(made.tensors["head.0.weight"], start.tensors["head.0.weight"])
    # The record says which prompt it was, and not where it lay.
    recorded = made.manifest.training["settings"]["prompt"]  # type: ignore[index,call-overload]
    assert recorded["init_version"] == version_of((source / "prompt.safetensors").read_bytes())  # type: ignore[index,call-overload]
    assert "init_from" not in recorded  # type: ignore[operator]


def resolved(settings: Settings, backbone: Backbone, **overrides: object) -> TrainConfig:
    config = settings(prompt__num_virtual_tokens=None, **overrides)
    return resolve(config, load_examples(config), backbone)


def test_an_alias_that_moves_on_does_not_change_a_run_that_began(
    settings: Settings, bert: Backbone, source: Path, tmp_path: Path
) -> None:
    first = (source / "prompt.safetensors").read_bytes()
    publish(tmp_path / "store", first)
    where = f"first@{tmp_path}/store"
    config = resolved(settings, bert, prompt__init_from=where)
    other = decode_prompt(first)
    moved = encode_prompt(other.manifest, {n: t + np.ones((), t.dtype) for n, t in other.tensors.items()})
    publish(tmp_path / "store", moved)
    data = load_examples(config)
    assert resolve(config, data, bert) == config
    assert read_source(where, config.prompt.init_version).version == version_of(first)
    assert read_source(where).version == version_of(moved)
    # A file has no versions to choose from: one that was replaced is refused.
    (source / "prompt.safetensors").write_bytes(moved)
    with pytest.raises(ConfigError, match=f"no longer version {version_of(first)[:12]}"):
        read_source(str(source), version_of(first))
    (source / "metrics.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"metrics\.json cannot be read as a run's scores.* or name .*prompt\."
    ):
        read_source(str(source))


def test_what_cannot_be_started_from_is_one_line(
    settings: Settings, bert: Backbone, source: Path, tmp_path: Path
) -> None:
    publish(tmp_path / "store", (source / "prompt.safetensors").read_bytes())
    (tmp_path / "broken").write_bytes(b"no prompt")
    here = str(source)
    for backbone, overrides, message in (
        (
            bert,
            {"method": "p-tuning-v2", "prompt__init_from": here},
            "has a soft prompt, and this method starts from a prefix",
        ),
        (tiny("roberta"), {"prompt__init_from": here}, "a prompt means something to its own model only"),
        (
            bert,
            {"prompt__init_from": here, "prompt__template": "{soft:7}{text}"},
            "has 4 virtual tokens and this one 7",
        ),
        (bert, {"prompt__init_from": str(tmp_path / "absent")}, "absent: No such file or directory"),
        (bert, {"prompt__init_from": str(tmp_path / "broken")}, "broken: "),
        (bert, {"prompt__init_from": f"first@{tmp_path}/nowhere"}, "there is no store in"),
        (bert, {"prompt__init_from": f"absent@{tmp_path}/store"}, "absent"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolved(settings, backbone, **overrides)
        assert message in str(caught.value)
        assert str(caught.value).startswith("prompt.init_from: ")
        assert "\n" not in str(caught.value)


def test_an_ensemble_is_refused_with_what_to_name_instead(
    settings: Settings, bert: Backbone, source: Path, tmp_path: Path
) -> None:
    """It was trained with the very method that is in use, so that this is no help."""
    one = decode_prompt((source / "prompt.safetensors").read_bytes())
    other = encode_prompt(one.manifest, {n: t + np.ones((), t.dtype) for n, t in one.tensors.items()})
    joint = join_prompts([("one", (source / "prompt.safetensors").read_bytes()), ("other", other)])
    (source / "prompt.safetensors").write_bytes(joint)
    with pytest.raises(
        ConfigError, match=r"is an ensemble of 2, .*name one seed's file, such as seeds/seed-0"
    ):
        resolved(settings, bert, prompt__init_from=str(source))


def test_a_p_tuning_prompt_may_start_from_a_prompt_tuning_one(
    settings: Settings, bert: Backbone, source: Path
) -> None:
    config = resolved(settings, bert, method="p-tuning", prompt__init_from=str(source))
    manifest = build_manifest(config, load_examples(config), bert)
    assert manifest.template == "{soft:2}{text}{soft:2}"


def test_places_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    text = 'task_id = "t"\noutput = "run"\n[data]\ntrain = "x"\n[prompt]\ninit_from = "{}"\n'
    for given, expected in (
        ("runs/a", f"{tmp_path}/runs/a"),
        ("mnli@store", f"mnli@{tmp_path}/store"),
        ("mnli:canary@redis://user@host/0", "mnli:canary@redis://user@host/0"),
        ("mnli@file:///stores/a", "mnli@file:///stores/a"),
    ):
        (tmp_path / "train.toml").write_text(text.format(given))
        assert load_config(tmp_path / "train.toml").prompt.init_from == expected


def test_tensors_are_float32_and_no_views_of_the_file(source: Path) -> None:
    tensors = read_source(str(source)).tensors()
    assert set(tensors) == {"soft_prompt"}
    assert tensors["soft_prompt"].dtype == torch.float32
    tensors["soft_prompt"] += 1
