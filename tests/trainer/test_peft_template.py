"""PEFT's caller tokenises a template and its text at once: an imported prompt has the same tokens, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors

from prompt_store import decode_prompt
from tests.trainer.peft_folders import PAIRS, TEXTS, adapter, base, logits
from tests.trainer.test_peft_export import page_of, quiet
from tests.trainer.test_peft_import import NEAR, ours
from trainer.errors import AdapterError
from trainer.peft_export import export_peft
from trainer.peft_import import Choices, import_peft

WORDS = {"yes": ("good",), "no": ("bad",)}


@pytest.mark.parametrize(
    "template",
    ["the film:\n{text}\nwas it {mask}", "{text}. was it {mask}", "it was:{text}  was it {mask}", '"{text}" {mask}'],
)  # fmt: skip
def test_a_language_model_reads_the_text_that_peft_read(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = base("llama")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "llama", "CAUSAL_LM")
    made = import_peft(tmp_path / "it", Choices(words=WORDS, template=template))
    words = hf.AutoTokenizer.from_pretrained(where).convert_tokens_to_ids(["Ġgood", "Ġbad"])
    want = [
        logits(wrapped, where, template.removesuffix(" {mask}").format(text=text))[words] for text in TEXTS
    ]
    got = ours(made, where, TEXTS)
    torch.testing.assert_close(torch.stack(got), torch.stack(want), **NEAR)
    export_peft(made.data, tmp_path / "out", backbone=str(where))
    page = page_of(tmp_path / "out", monkeypatch)
    torch.testing.assert_close(torch.stack([quiet(page, text) for text in TEXTS]), torch.stack(got), **NEAR)
    assert "cannot be named" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("tokens", [12, 7])
def test_a_template_is_judged_by_its_own_tokens_and_not_by_what_is_left_of_a_text(
    family: str, tokens: int, tmp_path: Path
) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", family)
    choices = Choices(template="it was {text} good ?", max_tokens=tokens)
    assert not any("tokenizer joins" in note for note in import_peft(tmp_path / "it", choices).notes)


@pytest.mark.parametrize(
    ("template", "called"),
    [("good : {text} bad : {text_pair}", '"good : {text} bad :", "{text_pair}"'),
     ("{text} {text_pair}", '"{text}", "{text_pair}"')],
)  # fmt: skip
def test_where_a_classifiers_two_texts_are_parted_is_said(template: str, called: str, tmp_path: Path) -> None:
    where = base("bert")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    made = import_peft(tmp_path / "it", Choices(template=template))
    assert any(f"as tokenizer({called}) does it" in note for note in made.notes)
    first, second = (side.strip('"') for side in called.split(", "))
    want = [
        logits(wrapped, where, first.format(text=text), second.format(text_pair=pair))
        for text, pair in zip(TEXTS, PAIRS, strict=True)
    ]
    torch.testing.assert_close(torch.stack(ours(made, where, TEXTS, PAIRS)), torch.stack(want), **NEAR)
    plain = import_peft(tmp_path / "it", Choices(template="{text}{text_pair}"))
    assert not any("as tokenizer(" in note for note in plain.notes)


def test_a_classifier_reads_lines(tmp_path: Path) -> None:
    where = base("gpt2")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "gpt2")
    made = import_peft(tmp_path / "it", Choices(template="the film:\n{text}\nwas it:"))
    want = [logits(wrapped, where, f"the film:\n{text}\nwas it:") for text in TEXTS]
    torch.testing.assert_close(torch.stack(ours(made, where, TEXTS)), torch.stack(want), **NEAR)


def test_a_template_whose_tokens_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "gpt2")
    with pytest.raises(AdapterError, match=r"' \{text\} was it' cannot be kept"):
        import_peft(tmp_path / "it", Choices(template=" {text} was it"))


def test_what_only_some_texts_lose_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "base"
    shutil.copytree(base("llama"), where)
    core = Tokenizer.from_file(str(where / "tokenizer.json"))
    # As Llama 3 and Qwen cut texts: the line's end belongs to the full stop before it.
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\.\n| ?\w+|\s+| ?[^\s\w]"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    saved = json.loads(core.to_str())
    saved["model"]["vocab"][".Ċ"] = saved["model"]["vocab"].pop("Ġmaybe")
    saved["model"]["merges"] = [m for m in saved["model"]["merges"] if "".join(m) != "Ġmaybe"] + [[".", "Ċ"]]
    (where / "tokenizer.json").write_text(json.dumps(saved))
    adapter(tmp_path / "it", "PROMPT_TUNING", "llama", on=where)
    made = import_peft(tmp_path / "it", Choices(template="{text}\nwas it"))
    (note,) = [note for note in made.notes if "joins the ends" in note]
    assert "(a full stop at the end)" in note
    export_peft(made.data, tmp_path / "out", backbone=str(where))
    text = "the film was good."
    got = quiet(page_of(tmp_path / "out", monkeypatch), text)
    torch.testing.assert_close(got, ours(made, where, (text,))[0], **NEAR)


def test_special_tokens_between_two_texts_are_said(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "llama", "CAUSAL_LM")
    where = tmp_path / "base"
    shutil.copytree(base("llama"), where)
    choices = Choices(words=WORDS, template="{text} ? {text_pair} {mask}", backbone=str(where))
    assert not any("as two texts" in note for note in import_peft(tmp_path / "it", choices).notes)
    core = Tokenizer.from_file(str(where / "tokenizer.json"))
    core.post_processor = processors.TemplateProcessing(  # as Llama's own
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    core.save(str(where / "tokenizer.json"))
    assert any("as two texts" in note for note in import_peft(tmp_path / "it", choices).notes)


def test_a_space_between_two_texts_is_the_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = base("gpt2")  # its pairs have nothing between them
    adapter(tmp_path / "it", "PROMPT_TUNING", "gpt2")
    made = import_peft(tmp_path / "it", Choices(template="{text} {text_pair}"))
    export_peft(made.data, tmp_path / "out", backbone=str(where))
    assert decode_prompt(made.data).manifest.template.endswith("{text} {text_pair}")
    page = page_of(tmp_path / "out", monkeypatch)
    got = [quiet(page, text, pair) for text, pair in zip(TEXTS, PAIRS, strict=True)]
    torch.testing.assert_close(torch.stack(got), torch.stack(ours(made, where, TEXTS, PAIRS)), **NEAR)
