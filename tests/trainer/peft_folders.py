"""Adapters made by PEFT itself on tiny random models, with prompts and heads large enough that mistakes show.

Virtual tokens, layers, heads, key-value heads, head width, embedding width and hidden size are all different numbers.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf
from torch import Tensor

from tests.backbone.families import CAUSAL, checkpoint

VIRTUAL, LABELS = 5, 7
TEXTS = ("the film was not very good", "who", "where is the order ? thanks , please never late")
PAIRS = ("a great warm book", "the order is late , where is it ?", "no")
LONG = " ".join(["the film was not very good , maybe"] * 20)
# Where the embeddings are narrower than the hidden states, PEFT must be told: it takes the hidden size else.
_WIDTHS = {"albert": 16, "electra": 16, "opt": 16}
# The tiny Qwen has a window of 5 places, which PEFT's prefix would fall out of at once.
WINDOW = 40
_CHANGES: dict[str, dict[str, Any]] = {"qwen3": {"sliding_window": WINDOW}}
_AUTO = {
    "SEQ_CLS": hf.AutoModelForSequenceClassification,
    "CAUSAL_LM": hf.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": hf.AutoModelForSeq2SeqLM,
}


@functools.cache
def _folders() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="promptmux-peft-")


@functools.cache
def base(family: str, **changes: Any) -> Path:
    """A checkpoint in which every frozen part of a sequence classifier has weights; `changes` go to its config."""
    suffix = "".join(f"-{key}-{value}" for key, value in changes.items())
    folder = Path(_folders().name) / f"{family}{suffix}"
    settings = {**_CHANGES.get(family, {}), **changes}
    config = hf.AutoConfig.from_pretrained(checkpoint(family), **settings)
    torch.manual_seed(7)
    if family in CAUSAL or family == "modernbert":
        auto: Any = hf.AutoModelForCausalLM if family in CAUSAL else hf.AutoModelForMaskedLM
        model = auto.from_pretrained(checkpoint(family), config=config)
        if family == "modernbert":
            torch.nn.init.normal_(model.head.norm.weight, mean=1.0, std=0.5)
    else:
        model = hf.AutoModel.from_pretrained(checkpoint(family), config=config)
        for name, parameter in model.named_parameters():
            if "pooler" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(checkpoint(family)).save_pretrained(folder)
    return folder


def config_of(kind: str, family: str, task: str, **more: Any) -> Any:
    """PEFT's configuration of one of its methods, by its own name for it."""
    width = {} if kind == "PREFIX_TUNING" or family not in _WIDTHS else {"token_dim": _WIDTHS[family]}
    common = {"task_type": task, "num_virtual_tokens": VIRTUAL, **width, **more}
    if kind == "PROMPT_TUNING":
        return peft.PromptTuningConfig(**common)
    if kind == "P_TUNING":
        return peft.PromptEncoderConfig(encoder_hidden_size=11, **common)
    if kind == "PREFIX_TUNING":
        return peft.PrefixTuningConfig(**common)
    if kind == "MULTITASK_PROMPT_TUNING":
        return peft.MultitaskPromptTuningConfig(num_tasks=3, num_ranks=2, **common)
    common.pop("num_virtual_tokens")
    made = peft.CPTConfig(
        cpt_token_ids=[9, 8, 7, 6, 5], cpt_mask=[1] * 5, cpt_tokens_type_mask=[1, 2, 3, 3, 2],
        opt_projection_epsilon=50.0, opt_projection_format_epsilon=50.0, **common,
    )  # fmt: skip
    made.token_dim = _WIDTHS.get(family)  # CPT's own constructor forgets it
    return made


def adapter(
    folder: Path, kind: str, family: str, task: str = "SEQ_CLS", *, on: Path | None = None, **more: Any
) -> Any:
    """Save an adapter in `folder`, and give the model that PEFT loads from it: what the importer must equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        where = on or base(family)
        torch.manual_seed(8)
        wrapped = peft.get_peft_model(_stock(where, task), config_of(kind, family, task, **more)).eval()
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad or "prefix_task" in name:
                torch.nn.init.normal_(parameter, std=0.5 if "base_model" in name else 1.5)
        wrapped.save_pretrained(str(folder))
        return load(folder, where, task)


def load(folder: Path, where: Path, task: str = "SEQ_CLS") -> Any:
    """What PEFT itself makes of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(_stock(where, task), str(folder)).eval()


def _stock(where: Path, task: str) -> Any:
    more = {"num_labels": LABELS} if task == "SEQ_CLS" else {}
    model = _AUTO[task].from_pretrained(where, **more)
    if task != "SEQ_2_SEQ_LM":
        model.config.pad_token_id = 1
    return model


def logits(wrapped: Any, where: Path, text: str, pair: str | None = None, **more: Any) -> Tensor:
    """PEFT's logits of one row without padding: [labels], or the vocabulary's at the last place."""
    tokenizer = hf.AutoTokenizer.from_pretrained(where)
    encoded = dict(tokenizer(text, pair, return_tensors="pt", return_token_type_ids=True, **more))
    if "token_type_ids" not in inspect.signature(wrapped.get_base_model().forward).parameters:
        encoded.pop("token_type_ids")
    elif where.name.startswith("gpt2"):
        encoded.pop("token_type_ids")  # GPT-2 would embed them as words
    if wrapped.peft_config["default"].peft_type == "MULTITASK_PROMPT_TUNING":
        encoded["task_ids"] = torch.tensor([1])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = wrapped(**encoded).logits[0]
    return got if got.ndim == 1 else got[-1]
