"""What a base model's tokenizer and configuration do to PEFT's answers: cuts, padding, spaces, labels."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, processors

from prompt_store import decode_prompt
from tests.backbone.families import POSITIONS
from tests.trainer.peft_folders import LABELS, LONG, PAIRS, TEXTS, VIRTUAL, adapter, base, config_of, logits
from tests.trainer.test_peft_import import NEAR, backbone, ours
from tests.trainer.test_peft_refused import said
from trainer.peft_import import Choices, import_peft

WORDS = {"a": ["good"], "b": ["bad"]}


def changed(to: Path, family: str, file: str = "config.json", **settings: Any) -> Path:
    """A copy of a base model with other settings in one of its files."""
    shutil.copytree(base(family), to / family)
    path = to / family / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return to / family


def test_texts_are_cut_on_the_tokenizers_side(tmp_path: Path) -> None:
    where = changed(tmp_path, "bert", "tokenizer_config.json", truncation_side="left")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "bert", on=where)
    made = import_peft(tmp_path / "it", Choices(max_tokens=12))
    assert any("--truncation-side" in note for note in made.notes)
    want = [
        logits(wrapped, where, LONG, pair, truncation=True, max_length=12) for pair in (None, LONG[4:], "no")
    ]
    got = [
        *ours(made, where, (LONG,)), *ours(made, where, (LONG, LONG), (LONG[4:], "no"))
    ]  # fmt: skip
    torch.testing.assert_close(torch.stack(got), torch.stack(want), **NEAR)
    right = import_peft(tmp_path / "it", Choices(max_tokens=12, truncation_side="right"))
    assert right.manifest.max_length.cut == "right"
    assert not torch.allclose(ours(right, where, (LONG,))[0], want[0], atol=1e-2)


def test_pairs_at_the_limit_are_cut_as_pefts(tmp_path: Path) -> None:
    where = base("bert")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    for limit in (8, 9, 10):
        made = import_peft(tmp_path / "it", Choices(max_tokens=limit))
        want = [
            logits(wrapped, where, a, b, truncation=True, max_length=limit)
            for a, b in zip(TEXTS, PAIRS, strict=True)
        ]
        torch.testing.assert_close(torch.stack(ours(made, where, TEXTS, PAIRS)), torch.stack(want), **NEAR)


def test_a_length_that_the_model_has_no_room_for_is_said(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    room = POSITIONS - VIRTUAL
    for given, said_so in ((room + 1, True), (room, False), (None, False)):
        made = import_peft(tmp_path / "it", Choices(max_tokens=given))
        assert made.manifest.max_length.tokens == POSITIONS
        assert any(f"cut at {room} tokens and not at {given}" in note for note in made.notes) is said_so


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_texts_are_cut_at_the_tokenizers_own_limit(family: str, tmp_path: Path) -> None:
    """As `tokenizer(text, truncation=True)` does it, which PEFT's examples call."""
    where = changed(tmp_path, family, "tokenizer_config.json", model_max_length=11)
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", family, on=where)
    made = import_peft(tmp_path / "it", Choices())
    (note,) = [note for note in made.notes if "texts are cut" in note]
    assert "cut at 11 tokens, the model_max_length of the base model's tokenizer" in note
    assert made.manifest.max_length.tokens == 11 + VIRTUAL
    want = logits(wrapped, where, LONG, truncation=True)
    torch.testing.assert_close(ours(made, where, (LONG,))[0], want, **NEAR)
    more = import_peft(tmp_path / "it", Choices(max_tokens=30))
    assert more.manifest.max_length.tokens == 30 + VIRTUAL
    assert not any("texts are cut" in note for note in more.notes)


def test_padding_that_texts_may_end_in_is_said(tmp_path: Path) -> None:
    """Behind a prefix PEFT's classifiers pass over it, and read what stands before."""
    texts = ("the film was good", "the film was good .")
    pad = hf.AutoTokenizer.from_pretrained(base("llama"))(texts[1])["input_ids"][-1]
    where = changed(tmp_path, "llama", pad_token_id=pad)
    wrapped = adapter(tmp_path / "it", "PREFIX_TUNING", "llama", on=where)
    wrapped.get_base_model().config.pad_token_id = pad
    made = import_peft(tmp_path / "it", Choices())
    (note,) = [note for note in made.notes if "passes over" in note]
    assert "passes over 'Ġ.'" in note
    near = [
        torch.allclose(ours(made, where, (text,))[0], logits(wrapped, where, text), atol=1e-4)
        for text in texts
    ]
    assert near == [True, False]
    adapter(tmp_path / "soft", "PROMPT_TUNING", "llama", on=where)
    assert not any("passes over" in note for note in import_peft(tmp_path / "soft", Choices()).notes)
    special = changed(tmp_path / "special", "llama", pad_token_id=1)
    adapter(tmp_path / "other", "PREFIX_TUNING", "llama", on=special)
    assert not any("passes over" in note for note in import_peft(tmp_path / "other", Choices()).notes)


@pytest.mark.parametrize(("kind", "place"), [("PREFIX_TUNING", -2), ("PROMPT_TUNING", "last")])
def test_a_row_that_ends_in_padding(kind: str, place: int | str, tmp_path: Path) -> None:
    """transformers passes over the padding token where it sees tokens, and PEFT's soft prompts hide them from it."""
    where = changed(tmp_path, "llama", pad_token_id=1)
    core = Tokenizer.from_file(str(where / "tokenizer.json"))
    pad = core.id_to_token(1)
    core.post_processor = processors.TemplateProcessing(
        single=f"$A {pad}", pair=f"$A $B {pad}", special_tokens=[(pad, 1)]
    )
    core.save(str(where / "tokenizer.json"))
    wrapped = adapter(tmp_path / "it", kind, "llama", on=where)
    made = import_peft(tmp_path / "it", Choices())
    assert made.manifest.pooling == place
    assert any("padding token" in note for note in made.notes) is (place == -2)
    want = [logits(wrapped, where, text) for text in TEXTS]
    torch.testing.assert_close(torch.stack(ours(made, where, TEXTS)), torch.stack(want), **NEAR)


def test_a_space_before_the_answer_is_said_to_be_no_token_here(tmp_path: Path) -> None:
    where = base("llama")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "llama", "CAUSAL_LM")
    made = import_peft(tmp_path / "it", Choices(words=WORDS, template="{text} it was : {mask}"))
    assert any("space before {mask}" in note for note in made.notes)
    ids = hf.AutoTokenizer.from_pretrained(where).convert_tokens_to_ids(["Ġgood", "Ġbad"])
    (got,) = ours(made, where, TEXTS[:1])
    torch.testing.assert_close(got, logits(wrapped, where, f"{TEXTS[0]} it was :")[ids], **NEAR)
    assert not torch.allclose(got, logits(wrapped, where, f"{TEXTS[0]} it was : ")[ids], atol=1e-2)
    assert not any("space" in note for note in import_peft(tmp_path / "it", Choices(words=WORDS)).notes)


def test_adapters_that_answer_with_numbers(tmp_path: Path) -> None:
    where = changed(tmp_path, "bert", problem_type="regression")
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert", on=where)
    assert "numbers, not labels" in said(tmp_path / "it")
    for given in (True, False):
        made = import_peft(tmp_path / "it", Choices(multi_label=given))
        assert made.manifest.multi_label is given


def test_one_label_of_its_own_is_enough_for_a_language_model(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "gpt2", "CAUSAL_LM")
    made = import_peft(tmp_path / "it", Choices(words={"yes": ["good"]}, multi_label=True))
    assert made.manifest.labels == ("yes",)


def test_one_output_is_a_label_if_somebody_says_so(tmp_path: Path) -> None:
    """A head of one output that a sigmoid makes a yes or no of: transformers has no word for it, and takes numbers."""
    one = adapter_of_one(tmp_path / "one", base("bert"))
    assert "say --multi-label" in said(tmp_path / "one")
    assert "nothing to choose from" in said(tmp_path / "one", Choices(multi_label=False))
    where = changed(tmp_path / "several", "bert", problem_type="multi_label_classification")
    two = adapter_of_one(tmp_path / "two", where)
    for folder, given, on, wrapped in (("one", True, base("bert"), one), ("two", None, where, two)):
        made = import_peft(tmp_path / folder, Choices(multi_label=given))
        assert made.manifest.multi_label
        (note,) = made.notes
        assert "the only one is LABEL_0" in note
        want = torch.stack([logits(wrapped, on, text) for text in TEXTS])
        torch.testing.assert_close(torch.stack(ours(made, on, TEXTS)), want, **NEAR)
        bone, prompt = backbone(on), decode_prompt(made.data)
        rows = bone.row_encoder(made.manifest).encode(TEXTS)
        scores = bone.score(rows, [bone.load_prompt(prompt)] * len(rows))
        torch.testing.assert_close(torch.tensor(scores).float(), want.sigmoid(), **NEAR)


def adapter_of_one(folder: Path, on: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hf.AutoModelForSequenceClassification.from_pretrained(on, num_labels=1)
        wrapped = peft.get_peft_model(model, config_of("PROMPT_TUNING", "bert", "SEQ_CLS"))
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5 if "base_model" in name else 1.5)
        wrapped.save_pretrained(str(folder))
        return wrapped.eval()


def test_labels_of_the_base_model_that_cannot_be_taken(tmp_path: Path) -> None:
    named = {str(at): "x" * 300 if at else "a" for at in range(LABELS)}
    where = changed(
        tmp_path, "bert", id2label={**named, "2": "b", **{str(at): f"l{at}" for at in range(3, LABELS)}}
    )
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert", on=where)
    assert "the base model's own names cannot be taken, name others" in said(tmp_path / "it")


def test_several_labels_are_the_base_models_word_or_the_callers(tmp_path: Path) -> None:
    where = changed(tmp_path, "bert", problem_type="multi_label_classification")
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert", on=where)
    made = import_peft(tmp_path / "it", Choices())
    assert (made.manifest.multi_label, len(made.manifest.labels)) == (True, LABELS)
    assert any("--single-label" in note for note in made.notes)
    single = import_peft(tmp_path / "it", Choices(multi_label=False))
    assert not single.manifest.multi_label
    assert not any("--single-label" in note for note in single.notes)


def test_a_folder_without_weights_says_what_to_do(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    (tmp_path / "it" / "adapter_model.safetensors").unlink()
    message = said(tmp_path / "it")
    assert "download the folder again" in message
    assert "save_pretrained" in message
