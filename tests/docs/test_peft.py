"""The script of docs/guides/migrate-from-peft.md gives what PEFT gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf

from backbone import load_backbone
from prompt_store import decode_prompt
from tests.backbone.families import checkpoint
from tests.docs.pages import ROOT, blocks

TEXTS = (
    "the film was not very good",
    "a great warm book",
    "who",
    "where is the order ? thanks , please never late",
)
LABELS = ("no", "maybe", "yes")
VIRTUAL = 5
GUIDE = ROOT / "docs" / "guides" / "migrate-from-peft.md"
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)


def base_model(folder: Path) -> None:
    """The tiny BERT with a pooler: one without is filled with other random numbers each time it is loaded."""
    torch.manual_seed(7)
    model = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint("bert"), num_labels=len(LABELS))
    torch.nn.init.normal_(model.bert.pooler.dense.weight, std=0.5)
    model.bert.save_pretrained(str(folder))
    hf.AutoTokenizer.from_pretrained(checkpoint("bert")).save_pretrained(str(folder))


def adapter(config: Any, base: Path, folder: Path) -> Any:
    """A PEFT model whose prompt and head are large enough to matter, saved in `folder`."""
    torch.manual_seed(8)
    model = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS))
    wrapped = peft.get_peft_model(model, config).eval()
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5 if "classifier" in name else 1.5)
    wrapped.save_pretrained(str(folder))
    return wrapped


@pytest.mark.parametrize(
    ("kind", "make"), [("soft", peft.PromptTuningConfig), ("prefix", peft.PrefixTuningConfig)]
)
def test_the_script_of_the_guide_gives_the_logits_of_peft(kind: str, make: Any, tmp_path: Path) -> None:
    base_model(tmp_path / "base")
    config = make(task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL)
    wrapped = adapter(config, tmp_path / "base", tmp_path / "adapter")
    (script,) = [
        block.text for block in blocks(GUIDE.read_text(encoding="utf-8")) if block.language == "python"
    ]
    (tmp_path / "from_peft.py").write_text(script, encoding="utf-8")
    out, base = tmp_path / "task.safetensors", str(tmp_path / "base")
    command = [sys.executable, "from_peft.py", "adapter", base, "task", kind, str(out), *LABELS]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bone = load_backbone(base, device="cpu", dtype="float32")
    prompt = decode_prompt(out.read_bytes())
    loaded = bone.load_prompt(prompt)
    got = bone.forward(bone.row_encoder(prompt.manifest).encode(TEXTS), [loaded] * len(TEXTS))
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    seen = []
    for text, logits in zip(TEXTS, got, strict=True):
        with torch.no_grad():
            encoded = tokenizer(text, return_tensors="pt")
            want = wrapped(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits[0]
        torch.testing.assert_close(logits, want, atol=1e-4, rtol=1e-4)
        seen.append(want)
    # Prompts that did nothing would agree just as well.
    assert torch.stack(seen).std(dim=0).min() > 0.01
