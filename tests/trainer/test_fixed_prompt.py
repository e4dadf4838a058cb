"""A fixed prompt stays as it is while every weight of the model moves, and the frozen model stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from rich.console import Console

from backbone import Backbone
from prompt_store import LinearHead, VerbalizerHead, encode_prompt, join_prompts
from tests.backbone.families import checkpoint, tiny
from tests.backbone.prompts import manifest, tensors
from tests.trainer.test_reference import FAST, WORDS, _Curve
from trainer import ConfigError, TrainConfig, load_examples, train
from trainer.evaluation import loss
from trainer.fine_tuning import FineTuning
from trainer.fixed_prompt import bare, cloze, from_file, hard, read_prompt, zero_shot
from trainer.reference import run_references

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("no_drawing")


def test_a_cloze_is_learned_by_every_weight_the_language_model_head_included(
    settings: Settings, bert: Backbone
) -> None:
    """The first gradients are those of the stock masked language model, to what bfloat16 products leave of them."""
    config = settings(head__words={"negative": ("bad",), "positive": ("good",)})
    data = load_examples(config)
    start, notes = hard(config, data, bert)
    assert (notes, str(start.manifest.template)) == ((), "{text} It was {mask}.")
    training = FineTuning(config.backbone, "cpu", data, start, FAST, lr=3e-4, seed=0)
    rows = training._splits["train"].rows[:8]
    targets = torch.from_numpy(training._splits["train"].targets[:8])
    training._gradients(rows, targets)

    model = hf.AutoModelForMaskedLM.from_pretrained(checkpoint("bert")).eval()
    words = [bert.tokenizer.encode_one(word)[0] for word in ("bad", "good")]
    scores = []
    for row in rows:
        out = model(input_ids=torch.tensor([row.token_ids])).logits[0]
        scores.append(out[row.spans[0][0]][words])
    loss(torch.stack(scores), targets, multi_label=False).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    got = dict(zip(_names(training, model), (p.grad for p in training._parameters), strict=True))
    assert {"cls.predictions.transform.dense.weight", "cls.predictions.bias"} < set(got)
    for name, gradient in expected.items():
        found = got[name]
        assert found is not None
        cosine = torch.nn.functional.cosine_similarity(found.flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.98 or float(gradient.norm()) < 1e-3, name


def _names(training: FineTuning, model: torch.nn.Module) -> list[str]:
    """The stock model's name of each parameter, by its value, which nothing has changed yet."""
    names = []
    for parameter in training._parameters:
        names.append(
            next(n for n, p in model.named_parameters() if n not in names and torch.equal(p, parameter))
        )
    return names


def test_a_trained_prompt_is_held_fixed_and_its_head_is_not(
    settings: Settings, console: Console, bert: Backbone, tmp_path: Path
) -> None:
    config = settings(method="p-tuning-v2", optimiser__epochs=1)
    made = train(config, console=console)
    prompt, version = read_prompt(made.prompt)
    assert version == made.version
    data = load_examples(config)
    start = from_file(prompt, data, bert)
    assert {name.split(".")[0] for name in start.prompt} == {"prefix"}
    assert set(start.head) == {"head.0.weight", "head.0.bias"}
    before = {name: tensor.clone() for name, tensor in start.prompt.items()}
    training = FineTuning(config.backbone, "cpu", data, start, FAST, lr=3e-4, seed=0)
    curve = _Curve()
    assert training.run(listener=curve) is not None
    assert sum(curve.losses[-3:]) < sum(curve.losses[:3])
    for name, tensor in before.items():
        assert torch.equal(training._prompt[name], tensor)
    assert not torch.equal(training._head["head.0.weight"], start.head["head.0.weight"])
    rows = run_references(
        config, ["fixed-prompt"], console=console, folder=tmp_path / "out", recipe=FAST, prompt=made.prompt
    )
    assert rows["fixed-prompt"].lr == 3e-4


def test_words_that_are_no_single_tokens_give_a_linear_head_and_a_note(
    settings: Settings, bert: Backbone
) -> None:
    config = settings()  # the labels' names are not in the tiny vocabulary
    start, notes = hard(config, load_examples(config), bert)
    assert isinstance(start.manifest.head, LinearHead)
    assert start.manifest.template == "{text} Is this negative or positive?"
    assert "fixed prompt: the label word 'negative' is" in notes[0]
    bad = settings(head__words={"negative": ("unspeakable",), "positive": ("good",)})
    with pytest.raises(ConfigError, match=r"head\.words: the label word"):
        hard(bad, load_examples(config), bert)


def test_a_decoder_is_asked_at_the_end(settings: Settings) -> None:
    config = settings(
        backbone=str(checkpoint("llama")), head__words={"negative": ("bad",), "positive": ("good",)}
    )
    data = load_examples(config)
    start = cloze(config, data, tiny("llama"))
    assert isinstance(start.manifest.head, VerbalizerHead)
    assert start.manifest.template == "{text} It was {mask}"
    training = FineTuning(config.backbone, "cpu", data, start, FAST, lr=3e-4, seed=0)
    curve = _Curve()
    training.run(listener=curve)
    assert sum(curve.losses[-3:]) < sum(curve.losses[:3])


def test_zero_shot_is_the_cloze_where_there_can_be_one(settings: Settings, bert: Backbone) -> None:
    spoken, plain = settings(head__words=WORDS), settings()
    data = load_examples(plain)
    assert zero_shot(spoken, data, bert).manifest == cloze(spoken, data, bert).manifest
    assert list(zero_shot(plain, data, bert).head) == ["verbalizer.label_embeddings"]


def test_bare_rows_have_nothing_of_the_prompt(settings: Settings, bert: Backbone) -> None:
    config = settings(
        method="prefix-tuning", prompt__template="{text} it was {mask} .", prompt__pooling="mask", head__words=WORDS,
        prompt__reparameterisation="mlp", prompt__init_from="a prompt that is no longer there",
    )  # fmt: skip
    manifest = bare(config, load_examples(config), bert).start.manifest
    assert (manifest.template, manifest.pooling) == ("{text}", "mean")


def test_a_prompt_of_another_task_is_refused(settings: Settings, console: Console, tmp_path: Path) -> None:
    made = train(settings(method="head-only"), console=console)
    text = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(text.replace("negative", "sad"))
    with pytest.raises(Exception, match="'sad' is unknown"):
        run_references(
            settings(), ["fixed-prompt"], console=console, folder=tmp_path / "out", prompt=made.prompt
        )
    with pytest.raises(ConfigError, match="a prompt file is for the strategy fixed-prompt"):
        run_references(settings(), ["head-only"], console=console, folder=tmp_path / "o", prompt=made.prompt)
    with pytest.raises(ConfigError, match=r"none\.safetensors: No such file"):
        read_prompt(tmp_path / "none.safetensors")


def test_an_ensemble_is_refused_before_anything_is_trained(
    settings: Settings, console: Console, bert: Backbone, tmp_path: Path
) -> None:
    """Its heads are its members' own: none would have learned."""
    files = []
    for seed in (0, 1):
        arrays = {name: tensor.numpy() for name, tensor in tensors(bert, soft=2, seed=seed).items()}
        files.append((f"seed {seed}", encode_prompt(manifest(bert, soft=2), arrays)))
    joint = tmp_path / "joint.safetensors"
    joint.write_bytes(join_prompts(files))
    with pytest.raises(
        ConfigError, match=r"joint\.safetensors is an ensemble of 2 prompts; name one prompt's"
    ):
        run_references(settings(), ["fixed-prompt"], console=console, folder=tmp_path / "out", prompt=joint)
