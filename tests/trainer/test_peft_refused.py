"""What cannot be imported or exported is refused in one sentence that says what to do, before anything is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from backbone import BackboneError
from tests.trainer.peft_folders import TEXTS, adapter, base, config_of, load, logits
from tests.trainer.test_peft_import import NEAR, ours
from trainer.errors import AdapterError
from trainer.peft_format import conversion
from trainer.peft_heads import stock_head
from trainer.peft_import import Choices, import_peft
from trainer.peft_names import BUILT_IN_ON_HUB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A soft prompt for the tiny BERT; tests that change it copy it first."""
    where = tmp_path_factory.mktemp("adapter") / "it"
    adapter(where, "PROMPT_TUNING", "bert")
    return where


def changed(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy with other settings; None takes one out."""
    to.mkdir(parents=True)
    before = json.loads((folder / "adapter_config.json").read_text()) | settings
    (to / "adapter_config.json").write_text(json.dumps({k: v for k, v in before.items() if v is not None}))
    (to / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    return to


def said(folder: Path, choices: Choices | None = None) -> str:
    with pytest.raises(AdapterError) as caught:
        import_peft(folder, choices)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "LORA"}, "changes the model's own weights"),
        ({"peft_type": "CARTRIDGE"}, "labels nothing"),
        ({"peft_type": None}, "not what PEFT wrote"),
        ({"task_type": "TOKEN_CLS"}, "labels single tokens"),
        ({"task_type": "QUESTION_ANS"}, "marks answers"),
        ({"task_type": "FEATURE_EXTRACTION"}, "no head"),
        ({"task_type": None}, "task_type must be"),
        ({"task_type": ["SEQ_CLS"]}, "task_type must be"),
        ({"peft_type": "prompt_tuning"}, "prompt_tuning is none of PEFT's prompts (PROMPT_TUNING, "),
        ({"peft_type": "CPT", "cpt_token_ids": 5, "num_virtual_tokens": None}, "must be a list"),
        (
            {"num_virtual_tokens": None},
            "num_virtual_tokens is missing, which PEFT always writes: put it there; by prompt_embeddings it is 5",
        ),
        ({"num_virtual_tokens": True}, "whole number"),
        ({"num_virtual_tokens": 4}, "does not fit"),
        ({"base_model_name_or_path": None}, "--backbone"),
        ({"base_model_name_or_path": "./nowhere"}, "--backbone"),
        ({"task_type": "CAUSAL_LM"}, "is no decoder"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "prefix_task_cols"),
    ],
)
def test_settings(settings: dict[str, Any], words: str, folder: Path, tmp_path: Path) -> None:
    assert words in said(changed(folder, tmp_path / "it", **settings))


def test_the_built_in_model_by_its_name_on_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exports of the built-in backbone's prompts name it so; without the hub, it is here by another name."""

    def unreachable(*_: object) -> Path:
        raise BackboneError("the hub cannot be reached")

    monkeypatch.setattr("trainer.peft_names.locate", unreachable)
    for name, words in ((BUILT_IN_ON_HUB, "--backbone minilm"), ("some/other", "--backbone names it")):
        assert words in said(changed(folder, tmp_path / name, base_model_name_or_path=name))


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (Choices(labels=["a", "b"]), "7 labels"),
        (Choices(words={"a": ["good"]}), "leave them out"),
        (Choices(aggregate="max"), "no label words"),
        (Choices(task_index=0), "--task-index"),
        (Choices(template="{soft:3}{text}"), "leave soft slots out"),
        (Choices(template="{nothing}"), "--template"),
        (Choices(template=""), "--template"),
        (Choices(template="{start}{text}"), "leave {start} out"),
        (Choices(template="{text} {mask}"), "leave {mask} out"),
        (Choices(task_id="No Good Name"), "--task 'No Good Name': not a task id: expected"),
        (Choices(labels=["a"] * 7), "--labels: "),
        (Choices(labels=["a", "", *"cdefg"]), "--labels: "),
        (Choices(max_tokens=1), "--max-length 1 leaves no place for the text: "),
        (Choices(template="{text_pair} {text}"), "--template: "),
        (Choices(template="{text} " + "the film was good " * 30), "--template: "),
        (Choices(template="it was {text}", max_tokens=3), "--max-length 3 leaves no place for the text: "),
    ],
)
def test_choices(choices: Choices, words: str, folder: Path) -> None:
    assert words in said(folder, choices)


def test_language_models_need_words(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "gpt2", "CAUSAL_LM")
    assert "--words positive=great,good" in said(tmp_path / "it")
    assert "--words positive=great,good" in said(tmp_path / "it", Choices(words={"a": ["good"], "b": []}))
    assert "--words: the label word 'good film' is 2 tokens" in said(
        tmp_path / "it", Choices(words={"a": ["good film"], "b": ["bad"]})
    )
    for twice in ({"a": ["good"], "b": ["good"]}, {"a": ["good", "good"], "b": ["bad"]}):
        assert "--words: 'good' and 'good' are one token" in said(tmp_path / "it", Choices(words=twice))
    for few in ({"a": ["good"]}, {}):
        assert "--words" in said(tmp_path / "it", Choices(words=few))
    assert "--words positive=great,good" in said(tmp_path / "it", Choices(words={"a": ["good"], "b": [""]}))
    assert "end the template with {mask}" in said(
        tmp_path / "it", Choices(words={"a": ["good"], "b": ["bad"]}, template="{mask} {text}")
    )


def test_other_base_models(folder: Path, tmp_path: Path) -> None:
    assert "does not fit" in said(folder, Choices(backbone=str(base("opt"))))
    adapter(tmp_path / "prefix", "PREFIX_TUNING", "llama")
    message = said(tmp_path / "prefix", Choices(backbone=str(base("gpt2"))))
    assert "2 heads" in message
    assert "4 heads of 6" in message


def test_tensors_of_the_model_itself(folder: Path, tmp_path: Path) -> None:
    it = changed(folder, tmp_path / "it")
    file = it / "adapter_model.safetensors"
    save_file(
        {**load_file(file), "base_model.bert.embeddings.word_embeddings.weight": torch.zeros(3, 2)}, file
    )
    assert "word_embeddings" in said(it)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, folder: Path, tmp_path: Path) -> None:
    it = changed(folder, tmp_path / "it")
    file = it / "adapter_model.safetensors"
    weights = load_file(file)
    weights["prompt_embeddings"][1, 2] = value
    save_file(weights, file)
    assert "not finite" in said(it)


def test_files_without_a_head(folder: Path, tmp_path: Path) -> None:
    it = changed(folder, tmp_path / "it")
    file = it / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file)
    assert "no weights for classifier" in said(it)
    pooler = {"weight": torch.zeros(24, 24), "bias": torch.zeros(24)}
    save_file(load_file(file) | {f"base_model.bert.pooler.dense.{k}": v for k, v in pooler.items()}, file)
    assert "no weights for classifier" in said(it)


@pytest.mark.parametrize(
    ("family", "lost", "more"),
    [
        ("bert", "classifier.bias", {}),
        ("roberta", "classifier.dense.bias", {}),
        ("roberta", "classifier.out_proj.bias", {}),
        ("distilbert", "pre_classifier.bias", {"token_dim": 24, "num_attention_heads": 4}),
        ("modernbert", "head.norm.weight", {"modules_to_save": ["head", "classifier"]}),
        ("bert", "bert.pooler.dense.bias", {"modules_to_save": ["pooler", "classifier"]}),
    ],
)
def test_a_head_that_lost_a_tensor(family: str, lost: str, more: dict[str, Any], tmp_path: Path) -> None:
    """Whatever took its place would answer otherwise; PEFT does not load it either."""
    where = base(family)
    adapter(tmp_path / "it", "PROMPT_TUNING", family, **more)
    file = tmp_path / "it" / "adapter_model.safetensors"
    weights = load_file(file)
    del weights[f"base_model.{lost}"]
    save_file(weights, file)
    with pytest.raises(KeyError, match=lost):
        load(tmp_path / "it", where)
    message = said(tmp_path / "it")
    assert f"is not whole: it has no base_model.{lost}" in message


def test_a_head_of_another_width(folder: Path, tmp_path: Path) -> None:
    it = changed(folder, tmp_path / "it")
    file = it / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.classifier.weight": torch.zeros(7, 20)}, file)
    assert "classifier.weight must be a matrix [outputs, 24], and its shape is [7, 20]" in said(it)


@pytest.mark.parametrize("shape", [(5,), (5, 24, 1)])
def test_a_prompt_that_is_no_matrix(shape: tuple[int, ...], folder: Path, tmp_path: Path) -> None:
    it = changed(folder, tmp_path / "it")
    file = it / "adapter_model.safetensors"
    save_file(load_file(file) | {"prompt_embeddings": torch.zeros(shape)}, file)
    message = said(it)
    assert "prompt_embeddings must be a matrix" in message
    assert "base model" not in message


def test_a_file_that_git_lfs_did_not_fetch(folder: Path, tmp_path: Path) -> None:
    it = changed(folder, tmp_path / "it")
    note = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (it / "adapter_model.safetensors").write_text(note)
    assert "run git lfs pull" in said(it)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_an_encoder_that_sees_only_what_stands_before(kind: str, tmp_path: Path) -> None:
    where = base("bert", is_decoder=True)
    wrapped = adapter(tmp_path / "it", kind, "bert", on=where)
    answers = [logits(wrapped, where, text) for text in TEXTS]
    torch.testing.assert_close(answers[0], answers[1])
    assert "is_decoder" in said(tmp_path / "it")


def test_a_language_model_head_whose_scores_cannot_be_kept(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "llama", "CAUSAL_LM", modules_to_save=["lm_head"])
    words = {"a": ["good", "great"], "b": ["bad"]}
    assert "--aggregate max" in said(tmp_path / "it", Choices(words=words, aggregate="max"))
    scaled = shutil.copytree(base("llama"), tmp_path / "scaled")
    settings = json.loads((scaled / "config.json").read_text())
    (scaled / "config.json").write_text(json.dumps({**settings, "logits_scaling": 2.0}))
    assert "logits_scaling" in said(tmp_path / "it", Choices(words=words, backbone=str(scaled)))
    file = tmp_path / "it" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file(
        weights | {"base_model.lm_head.weight": weights["base_model.lm_head.weight"][:, 1:].clone()}, file
    )
    assert "lm_head.weight must have a row of 24" in said(tmp_path / "it", Choices(words=words))


@pytest.mark.parametrize(
    ("of", "on", "words"),
    [
        ("bert", "llama", "head is classifier, and the head of a llama classifier is score"),
        ("bert", "roberta", "a roberta classifier is classifier.dense, classifier.out_proj"),
        ("bert", "distilbert", "a distilbert classifier is pre_classifier, classifier"),
        ("roberta", "bert", "head is classifier.dense, classifier.out_proj, and the head of a bert"),
    ],
)
def test_a_head_of_another_family_is_not_taken_for_an_old_file(
    of: str, on: str, words: str, tmp_path: Path
) -> None:
    """Who is told to train again throws a good adapter away: here only the base model is another."""
    adapter(tmp_path / "it", "PROMPT_TUNING", of)
    message = said(tmp_path / "it", Choices(backbone=str(base(on))))
    assert "the base model does not fit" in message
    assert ("or the folder is not whole" in message) is (on == "distilbert")
    assert words in message
    assert "train it again" not in message


def test_base_models_without_a_pooler(folder: Path) -> None:
    from tests.backbone.families import checkpoint

    assert "draws them at random" in said(folder, Choices(backbone=str(checkpoint("bert"))))


@pytest.mark.parametrize("family", ["albert", "modernbert"])
def test_prefixes_that_peft_cannot_run(family: str, tmp_path: Path) -> None:
    wrapped = adapter(tmp_path / "it", "PREFIX_TUNING", family)
    with pytest.raises(ValueError, match="past key values"):
        logits(wrapped, base(family), TEXTS[0])
    assert "PEFT itself cannot run" in said(tmp_path / "it")


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("PROMPT_TUNING", "bert"),
        ("PROMPT_TUNING", "gpt2"),
        ("PREFIX_TUNING", "bert"),
        ("PREFIX_TUNING", "llama"),
    ],
)
def test_two_submodules_are_for_encoder_decoders(kind: str, family: str, tmp_path: Path) -> None:
    """PEFT takes the rows of both stacks there under a mask for one, or lays a prefix out over other layers."""
    adapter(tmp_path / "it", kind, family, num_transformer_submodules=2)
    assert "is 2, which is for encoder-decoders" in said(tmp_path / "it")


def test_a_decoder_whose_classifier_is_built_otherwise_is_not_told_to_train_again() -> None:
    """It has no layer `score`, which an adapter for it therefore cannot hold."""
    for config in (hf.ModernBertDecoderConfig(), hf.CTRLConfig()):
        with pytest.raises(AdapterError, match=f"classifier on {config.model_type} is not known here"):
            stock_head(config, is_causal=True)
    assert stock_head(hf.GPT2Config(), is_causal=True).stages[0].name == "score"


def test_a_base_model_that_cannot_be_served_is_not_sent_elsewhere(folder: Path, tmp_path: Path) -> None:
    where = tmp_path / "bloom"
    torch.manual_seed(0)
    tokenizer = hf.AutoTokenizer.from_pretrained(base("gpt2"))
    hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=len(tokenizer), hidden_size=8, n_head=2, n_layer=1)
    ).save_pretrained(where)
    tokenizer.save_pretrained(where)
    message = said(changed(folder, tmp_path / "it", base_model_name_or_path=str(where)))
    assert "takes no position ids" in message
    assert "--backbone" not in message


def test_several_adapters_in_one_folder(folder: Path, tmp_path: Path) -> None:
    changed(folder, tmp_path / "a")
    changed(folder, tmp_path / "b")
    assert "name one of" in said(tmp_path)
    assert "save_pretrained" in said(tmp_path / "a" / "nothing")
    assert "damaged" in _truncated(tmp_path / "a")


def _truncated(folder: Path) -> str:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    return said(folder)


def test_pickles_come_with_the_command_that_converts_them(folder: Path, tmp_path: Path) -> None:
    it = changed(folder, tmp_path / "it's here")
    file = it / "adapter_model.safetensors"
    torch.save(load_file(file), it / "adapter_model.bin")
    file.unlink()
    message = said(it)
    assert conversion(it) in message
    command = conversion(it).replace("python -c", f"{sys.executable} -c", 1)
    subprocess.run(command, shell=True, check=True, timeout=600)
    where = base("bert")
    want = logits(load(folder, where), where, TEXTS[0])
    torch.testing.assert_close(
        ours(import_peft(it, Choices(task_id="it")), where, TEXTS[:1])[0], want, **NEAR
    )


def test_multitask_adapters_need_a_choice(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "MULTITASK_PROMPT_TUNING", "bert")
    assert "--task-index 0 to 2" in said(tmp_path / "it")
    assert "not 3" in said(tmp_path / "it", Choices(task_index=3))


def test_no_kind_of_pefts_prompts_is_unknown_here() -> None:
    """PEFT's own list of prompt learning methods, so that a new one does not go unnoticed."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from trainer.peft_format import _METHODS

    made = {
        kind.value
        for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if issubclass(cls, type(config_of("CPT", "gpt2", "CAUSAL_LM")).__mro__[1])
    }
    assert made - {"CARTRIDGE"} == set(_METHODS)
