"""The first commands of docs/guides/migrate-from-peft.md, run as they stand, give what PEFT gives."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

from prompt_store import decode_prompt
from promptmux.__main__ import build
from tests.docs.pages import ROOT, blocks
from tests.trainer.peft_folders import adapter, base, logits
from tests.trainer.test_peft_export import page_of, quiet
from trainer import peft_format

GUIDE = ROOT / "docs" / "guides" / "migrate-from-peft.md"
TEXT = "What a charming film!"


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_the_commands_of_the_guide(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(block for block in blocks(GUIDE.read_text(encoding="utf-8")) if block.language == "sh")
    labels = tuple("abcdefg")
    wrapped = adapter(tmp_path / "my-adapter", kind, "bert")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "base-model").symlink_to(base("bert"))
    said = []
    for line in first.text.splitlines():
        words = shlex.split(line.replace("negative,positive", ",".join(labels)))
        assert words.pop(0) == "promptmux"
        more = ["--json"] if words[0] == "predict" else []
        done = CliRunner().invoke(build(), [*words, *more])
        assert done.exit_code == 0, (done.output, done.exception)
        said.append(done.output)
    assert len(said) == 3
    want = logits(wrapped, base("bert"), TEXT)
    answer = json.loads(said[1].splitlines()[-1])
    assert answer["label"] == labels[int(want.argmax())]
    assert answer["score"] == pytest.approx(
        float(want.softmax(0).max()), abs=0.02
    )  # predict may use bfloat16
    assert decode_prompt((tmp_path / "my-task.safetensors").read_bytes()).manifest.task_id == "my-task"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hf.AutoModelForSequenceClassification.from_pretrained(base("bert"), num_labels=len(labels))
        back = peft.PeftModel.from_pretrained(model, "back-to-peft").eval()
    torch.testing.assert_close(logits(back, base("bert"), TEXT), want, atol=1e-5, rtol=1e-5)
    # What the page says is done in its folder, where the base model's relative name would lead nowhere.
    page = (tmp_path / "back-to-peft" / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir("back-to-peft")
    (again,) = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    done = CliRunner().invoke(build(), shlex.split(again)[1:])
    assert done.exit_code == 0, (done.output, done.exception)
    torch.testing.assert_close(quiet(page_of(Path.cwd(), monkeypatch), TEXT), want, atol=1e-5, rtol=1e-5)


def test_the_guide_names_every_kind_that_is_imported() -> None:
    page = GUIDE.read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z_0-9]{3,})`", page))
    assert (
        set(peft_format._METHODS) | set(peft_format._TASKS) | {"SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"}
        <= named
    )
