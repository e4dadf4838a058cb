"""Training on encoder-decoders: what is learned in which stack, and that the file is served as it was scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

from backbone import Backbone
from prompt_store import decode_prompt
from tests.backbone.seq2seq import STACKS, checkpoint, tiny
from trainer import ConfigError, TrainConfig, evaluate, load_examples, train
from trainer.init import Initialiser
from trainer.methods import resolve

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("no_drawing")
WORDS = {"negative": ("bad", "terrible"), "positive": ("good", "great")}
KEYS = {f"prefix.{stack}.{kind}" for stack in STACKS for kind in ("key", "value")}
HEAD = {"head.0.weight", "head.0.bias"}
CASES: dict[str, tuple[str, dict[str, Any], set[str], str | None]] = {
    "encoder alone": ("bart", {"method": "p-tuning-v2"}, {"prefix.encoder.key", "prefix.encoder.value"} | HEAD, None),
    "all three stacks": ("bart", {"method": "p-tuning-v2", "prompt__decoder": "copy"}, KEYS | HEAD, "copy"),
    "random start": (
        "t5", {"method": "p-tuning-v2", "prompt__decoder": "start", "prompt__init": ("random",)}, KEYS | HEAD, "start"
    ),
    "sentinel": (
        "t5", {"method": "prompt-tuning", "prompt__template": "{soft:4}{text} it is {mask} .", "head__words": WORDS},
        {"soft_prompt"}, "mask",
    ),
    "first token": (
        "t5",
        {
            "method": "p-tuning-v2", "prompt__template": "{text} {mask}", "prompt__decoder": "start",
            "head__words": WORDS,
        },
        KEYS, "start",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_prompts_are_learned_published_and_served(case: str, settings: Settings, console: Console) -> None:
    family, changes, names, reads = CASES[case]
    config = settings(backbone=str(checkpoint(family)), optimiser__epochs=2, **changes)
    result = train(config, console=console)
    prompt = decode_prompt(result.prompt.read_bytes())
    assert set(prompt.tensors) == names
    assert (prompt.manifest.decoder.reads if prompt.manifest.decoder else None) == reads
    curve = json.loads((result.folder / "metrics.json").read_text())["seeds"][0]["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    bone = tiny(family)
    served = evaluate(bone, prompt, load_examples(config).test)
    assert served == result.rows[-1].scores[0]
    loaded = bone.load_prompt(prompt)
    assert loaded.folded is None
    rows = bone.row_encoder(prompt.manifest).encode(["good film", "bad film this is"])
    together = bone.score_on_lane(rows, [loaded] * 2)
    for row, scores in zip(rows, together, strict=True):
        assert scores == pytest.approx(bone.score([row], [loaded])[0], abs=1e-5)
        assert sum(scores) == pytest.approx(1.0)


def test_stacks_start_from_values_of_their_own() -> None:
    bone = tiny("t5")
    initialiser = Initialiser(bone, [], task_text="good or bad", label_texts=["good", "bad"])
    for sources in (("text",), ("random",)):
        keys = {stack: initialiser.prefix(sources, 3, 0, stack=stack)[0] for stack in STACKS}
        assert keys["encoder"].shape[0] == 4
        assert keys["decoder"].shape == keys["cross"].shape == (2, 3, 3, 5)
        assert not torch.equal(keys["decoder"], keys["cross"])


def test_a_decoder_that_is_not_there_is_refused(settings: Settings, bert: Backbone) -> None:
    config = settings(prompt__decoder="start")
    data = load_examples(config)
    with pytest.raises(ConfigError, match=r"prompt\.decoder: .* is no encoder-decoder; leave it out"):
        resolve(config, data, bert)
