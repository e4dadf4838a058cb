"""README.md of an exported folder says what PEFT's files cannot, and runs nothing but its own lines."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

from backbone import load_backbone
from prompt_store import decode_prompt, encode_prompt
from promptmux.__main__ import build
from tests.backbone.prompts import manifest, tensors
from tests.docs.pages import blocks
from tests.trainer.peft_folders import LABELS, LONG, PAIRS, TEXTS, adapter, base
from tests.trainer.test_peft_export import page_of, quiet, remade
from tests.trainer.test_peft_import import NEAR, ours
from trainer.peft_export import export_peft
from trainer.peft_import import Choices, Imported, import_peft


def exported(tmp_path: Path, **changes: Any) -> tuple[bytes, str]:
    """A prompt file with these fields, and the page of the folder that is written for it."""
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    data = remade(import_peft(tmp_path / "it", Choices(task_id="it")).data, **changes)
    export_peft(data, tmp_path / "out", backbone=str(base("bert")))
    return data, (tmp_path / "out" / "README.md").read_text()


def test_labels_are_no_lines_of_their_own(tmp_path: Path) -> None:
    evil = "a\n\n```python\nraise SystemExit\n```\n"
    _, page = exported(tmp_path, labels=(evil, "```python", "b\r```sh", "d\u2028e", "\u00fc", "g", "h"))
    assert [block.language for block in blocks(page)] == ["python"]
    assert "raise SystemExit" not in page.splitlines()
    assert '4. "\u00fc"' in page


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_the_base_model_may_be_a_classifier_of_its_own_in_half_precision(
    family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers takes a checkpoint's dtype, and refuses a head of another size, where nothing else is said."""
    where = tmp_path / family
    shutil.copytree(base(family), where)
    torch.manual_seed(9)
    model = hf.AutoModelForSequenceClassification.from_pretrained(base(family), num_labels=LABELS + 2)
    model.to(torch.bfloat16).save_pretrained(where)
    adapter(tmp_path / "it", kind, family)
    made = import_peft(tmp_path / "it", Choices(backbone=str(where)))
    assert export_peft(made.data, tmp_path / "out", backbone=str(where)).task_type == "SEQ_CLS"
    page = page_of(tmp_path / "out", monkeypatch)
    want = torch.stack(ours(made, where, TEXTS))
    torch.testing.assert_close(torch.stack([quiet(page, text) for text in TEXTS]), want, **NEAR)
    # One that was trained here: its head is not the stock one, and the page's own lines apply it.
    bone = load_backbone(str(where), device="cpu", dtype="float32", kernels="off")
    weights = {name: tensor.numpy() for name, tensor in tensors(bone, soft=3).items()}
    data = encode_prompt(manifest(bone, soft=3), weights)
    assert export_peft(data, tmp_path / "own", backbone=str(where)).task_type == "FEATURE_EXTRACTION"
    page = page_of(tmp_path / "own", monkeypatch)
    want = torch.stack(ours(Imported(data, decode_prompt(data).manifest, ()), where, TEXTS))
    torch.testing.assert_close(torch.stack([quiet(page, text) for text in TEXTS]), want, **NEAR)


@pytest.mark.parametrize("cut", ["left", "right"])
@pytest.mark.parametrize("counts", ["text", "row"])
def test_texts_are_cut_as_the_prompt_cuts_them(
    cut: str, counts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = {"tokens": 7 if counts == "text" else 14, "counts": counts, "cut": cut}
    data, _ = exported(tmp_path, max_length=limit)
    made, page = Imported(data, decode_prompt(data).manifest, ()), page_of(tmp_path / "out", monkeypatch)
    where = base("bert")
    torch.testing.assert_close(quiet(page, LONG), ours(made, where, (LONG,))[0], **NEAR)
    for pair in (" ".join(TEXTS), ""):
        torch.testing.assert_close(quiet(page, LONG, pair), ours(made, where, (LONG,), (pair,))[0], **NEAR)


@pytest.mark.parametrize("cut", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "kind", "template"),
    [("bert", "PROMPT_TUNING", "it was {text} . film"), ("llama", "PREFIX_TUNING", "the film:\n{text} was it"),
     ("gpt2", "PROMPT_TUNING", "it was {text}")],
)  # fmt: skip
def test_words_around_a_long_text_stay(
    family: str, kind: str, template: str, cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(tmp_path / "it", kind, family)
    made = import_peft(tmp_path / "it", Choices(template=template))
    limit = {"tokens": 20, "counts": "row", "cut": cut}
    data = remade(made.data, max_length=limit)
    export_peft(data, tmp_path / "out", backbone=str(base(family)))
    made, page = Imported(data, decode_prompt(data).manifest, ()), page_of(tmp_path / "out", monkeypatch)
    want = ours(made, base(family), (*TEXTS, LONG, ""))
    got = torch.stack([quiet(page, text) for text in (*TEXTS, LONG, "")])
    torch.testing.assert_close(got, torch.stack(want), **NEAR)


@pytest.mark.parametrize(("family", "kind"), [("llama", "PROMPT_TUNING"), ("bert", "PREFIX_TUNING")])
def test_words_behind_a_pair_stay_without_it(
    family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = base(family)
    adapter(tmp_path / "it", kind, family)
    made = import_peft(tmp_path / "it", Choices(template="the film {text} was {text_pair} ? who"))
    export_peft(made.data, tmp_path / "out", backbone=str(where))
    page = page_of(tmp_path / "out", monkeypatch)
    got = [quiet(page, text) for text in (*TEXTS, LONG)]
    torch.testing.assert_close(torch.stack(got), torch.stack(ours(made, where, (*TEXTS, LONG))), **NEAR)
    got = [quiet(page, text, pair) for text, pair in zip(TEXTS, PAIRS, strict=True)]
    torch.testing.assert_close(torch.stack(got), torch.stack(ours(made, where, TEXTS, PAIRS)), **NEAR)
    assert "the lines below cut no pair" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_of_the_page_gives_the_prompt_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tuple(f"a label {at}" for at in range(LABELS))
    limit = {"tokens": 40, "counts": "row", "cut": "left"}
    data, page = exported(
        tmp_path, labels=labels, multi_label=True, max_length=limit, thresholds=(0.25,) * LABELS
    )
    assert "0.25" in page
    (command,) = [block.text for block in blocks(page) if block.language == "sh"]
    monkeypatch.chdir(tmp_path / "out")
    done = CliRunner().invoke(build(), shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    one, two = (decode_prompt(each).manifest for each in (data, Path("it.safetensors").read_bytes()))
    drop = {"method", "training", "thresholds"}
    assert one.model_dump(exclude=drop) == two.model_dump(exclude=drop)


def test_the_command_of_the_page_keeps_the_label_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "gpt2", "CAUSAL_LM")
    words = {"yes": ["good", "great"], "no": ["bad"]}
    data = import_peft(tmp_path / "it", Choices(task_id="it", words=words, aggregate="max")).data
    export_peft(data, tmp_path / "out", backbone=str(base("gpt2")))
    made = Imported(data, decode_prompt(data).manifest, ())
    page = page_of(tmp_path / "out", monkeypatch)
    torch.testing.assert_close(quiet(page, TEXTS[0]), ours(made, base("gpt2"), TEXTS[:1])[0], **NEAR)
    readme = (tmp_path / "out" / "README.md").read_text()
    (command,) = [block.text for block in blocks(readme) if block.language == "sh"]
    done = CliRunner().invoke(build(), shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    head = decode_prompt(Path("it.safetensors").read_bytes()).manifest.head
    assert head == made.manifest.head
    assert head.model_dump()["aggregate"] == "max"


@pytest.mark.parametrize("place", [9, -9])
def test_a_place_that_a_short_row_has_not(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = exported(tmp_path, pooling=place, template="{soft:5}{text}")
    made, page = Imported(data, decode_prompt(data).manifest, ()), page_of(tmp_path / "out", monkeypatch)
    for text in ("", *TEXTS):
        torch.testing.assert_close(quiet(page, text), ours(made, base("bert"), (text,))[0], **NEAR)
