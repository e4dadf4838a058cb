"""Owns how a prompt file becomes a folder that PEFT loads, in one of two ways, and which prompts PEFT cannot hold.

stock      transformers' own model (SEQ_CLS, CAUSAL_LM, SEQ_2_SEQ_LM) gives the prompt's logits: so goes back what was
           imported
reading    the model's states are PEFT's (FEATURE_EXTRACTION), and README.md has the lines that pool them and apply the
           head, which lies in head.safetensors: PEFT's classifiers cannot average over text tokens, read [CLS] behind
           virtual tokens, leave positions as they are behind a prefix, or add a bias to a decoder's scores

Knows PEFT's files through `peft_format`; `peft_stock` knows which prompts are stock, `peft_readme` what README.md says.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal as OneOf

import numpy as np
from safetensors.numpy import save
from transformers import AutoConfig, AutoModel

from backbone import Backbone, load_backbone
from backbone.loader import BUILT_IN, locate
from prompt_store import (
    Literal,
    Prompt,
    StartSlot,
    Template,
    VerbalizerHead,
    decode_prompt,
    parse_template,
)
from prompt_store.prompt import Array
from trainer.errors import AdapterError
from trainer.peft_format import CONFIG, PROMPT, VERSION, WEIGHTS
from trainer.peft_heads import window_of
from trainer.peft_names import BUILT_IN_ON_HUB
from trainer.peft_readme import HEAD_FILE, readme
from trainer.peft_stock import MODERNBERT_HEAD, as_stock, two_stacks
from trainer.peft_tensors import prefix_rows

Way = OneOf["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"]


@dataclass(frozen=True)
class Exported:
    """What was written: how PEFT uses it, and why it is not a stock classifier if it is none."""

    folder: Path
    task_type: Way
    reason: str


def export_peft(data: bytes, folder: Path, *, backbone: str | None = None) -> Exported:
    """Write the folder of a prompt file. `backbone` says where its base model is, if its name alone does not.

    Raises:
        AdapterError: PEFT cannot hold this prompt, or the folder is in use; nothing was written then.
        BackboneError: the base model cannot be loaded.
        PromptStoreError: no prompt file, or one for another backbone.

    """
    prompt = decode_prompt(data)
    if prompt.manifest.members:
        raise AdapterError(
            "the file is an ensemble, and a PEFT folder holds one prompt: export its members' own files"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"{folder} is not an empty folder: name a new one")
    name = backbone or prompt.manifest.backbone.name
    base = load_backbone(name, device="cpu", dtype="float32", kernels="off")
    folder_of_base = locate(name)
    base.load_prompt(prompt)  # what it refuses PEFT cannot do either
    template = parse_template(prompt.manifest.template)
    _refuse_misplaced(prompt, template, base)
    config = AutoConfig.from_pretrained(folder_of_base)
    _refuse_prefixes(prompt, base, config)
    rows = _rows(prompt) if base.shape.decoder is None else two_stacks(prompt, base)
    stock, reason = (
        ({}, "")
        if base.shape.decoder is not None
        else as_stock(prompt, template, base, config, folder_of_base)
    )
    way: Way = "FEATURE_EXTRACTION"
    files: dict[str, bytes] = {}
    if stock is not None:
        speaks: Way = "CAUSAL_LM" if base.shape.decoder is None else "SEQ_2_SEQ_LM"
        way = speaks if isinstance(prompt.manifest.head, VerbalizerHead) else "SEQ_CLS"
        tensors = {PROMPT: rows, **stock}
    else:
        _refuse_unreadable(prompt, template, base, config, reason)
        tensors = {PROMPT: rows}
        files[HEAD_FILE] = save(
            {name: array.astype(np.float32) for name, array in prompt.tensors.items() if _is_head(name)}
        )
    where = _found_from_anywhere(name)
    saved = ["classifier", "score"] + (["pooler"] if any(".pooler." in key for key in tensors) else [])
    saved += ["head"] if any(key.startswith(MODERNBERT_HEAD) for key in tensors) else []
    written = _config(prompt, base, where, way, saved if way == "SEQ_CLS" else None, rows.shape[1])
    files[CONFIG] = (json.dumps(written, indent=2, sort_keys=True) + "\n").encode()
    files[WEIGHTS] = save(tensors, {"format": "pt"})
    files["README.md"] = readme(prompt.manifest, base, config, way, where, reason).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    except OSError as error:
        for file in files:  # half of an adapter would be in the way of the next try
            with suppress(OSError):
                (folder / file).unlink()
        raise AdapterError(f"{folder}: {error.strerror}") from None
    return Exported(folder, way, reason)


def _found_from_anywhere(name: str) -> str:
    """The base model as the folder's files name it: they may be read in another working folder than this one."""
    if name == BUILT_IN:
        return BUILT_IN_ON_HUB
    return os.path.abspath(name) if os.path.isdir(name) else name


def _refuse_misplaced(prompt: Prompt, template: Template, base: Backbone) -> None:
    """What PEFT has no place for: it puts one stretch of virtual tokens, or one prefix, before everything."""
    manifest = prompt.manifest
    prefixes = {name.split(".")[1] for name in prompt.tensors if name.startswith("prefix.")}
    if not template.num_soft and not prefixes:
        raise AdapterError("the prompt has no virtual tokens, so PEFT has nothing to load")
    if template.num_soft and prefixes:
        raise AdapterError("the prompt has virtual tokens and a prefix: PEFT holds one or the other")
    if len(prefixes) > 1:
        raise AdapterError(f"the prompt has prefixes for {sorted(prefixes)}: PEFT gives one to one stack")
    if template.num_leading_soft != template.num_soft:
        raise AdapterError("the template has virtual tokens behind other parts: PEFT puts all of them first")
    if template.num_soft and manifest.position_offset != template.num_soft:
        raise AdapterError(
            f"text begins at position {manifest.position_offset} and not behind the {template.num_soft} virtual "
            "tokens: PEFT counts positions through"
        )
    if any(isinstance(part, StartSlot) for part in template.parts):
        raise AdapterError(
            "the template has {start}: PEFT leaves special tokens where the tokenizer puts them"
        )
    # A decoder answers at its last token, and of encoder-decoders `two_stacks` knows which state PEFT has.
    answers = base.is_causal or base.shape.decoder is not None
    if template.has_mask and base.tokenizer.mask_id is not None and not answers:
        raise AdapterError("the template has {mask}, where PEFT puts no token: it cannot be exported")


def _refuse_prefixes(prompt: Prompt, base: Backbone, config: Any) -> None:
    """Models which PEFT's prefixes do not reach, or not always."""
    if "soft_prompt" in prompt.tensors:
        return
    classes: Any = AutoModel._model_mapping
    if "past_key_values" not in inspect.signature(classes[type(config)].forward).parameters:
        raise AdapterError(f"PEFT cannot run prefix tuning on {config.model_type}: it cannot be exported")
    window, rows = window_of(config), base.row_encoder(prompt.manifest)
    most = max(rows.longest(), rows.longest(pair=True)) + prompt.num_virtual_tokens
    if window is not None and window < most:
        raise AdapterError(
            f"the prompt takes rows of {most} places, and in PEFT the prefix falls out of a window of {window}: it "
            "cannot be exported"
        )


def _refuse_unreadable(prompt: Prompt, template: Template, base: Backbone, config: Any, reason: str) -> None:
    """What the lines in README.md cannot do either."""
    manifest = prompt.manifest
    if isinstance(manifest.head, VerbalizerHead):
        raise AdapterError(f"the prompt answers with label words, and {reason}: it cannot be exported")
    words = any(isinstance(part, Literal) and part.text.strip() for part in template.parts)
    if words and manifest.pooling == "mean":
        raise AdapterError(
            "the prompt averages over the text without the template's own words, which PEFT cannot tell apart: it "
            "cannot be exported"
        )
    if (
        template.has_pair
        and base.tokenizer.layout.second_segment
        and getattr(config, "type_vocab_size", 0) > 1
    ):
        raise AdapterError(
            "the prompt is for pairs, whose segments PEFT drops where it gives features: it cannot be exported"
        )


def _rows(prompt: Prompt) -> Array:
    soft = prompt.tensors.get("soft_prompt")
    if soft is not None:
        return np.ascontiguousarray(soft, np.float32)
    stack = next(name.split(".")[1] for name in prompt.tensors if name.startswith("prefix."))
    return prefix_rows(prompt.tensors[f"prefix.{stack}.key"], prompt.tensors[f"prefix.{stack}.value"])


def _is_head(name: str) -> bool:
    return name.startswith(("head.", "verbalizer."))


def _config(
    prompt: Prompt, base: Backbone, where: str, way: Way, saved: list[str] | None, width_of_rows: int
) -> Mapping[str, Any]:
    """adapter_config.json with every key that PEFT 0.21's own classes write."""
    shape, is_prefix = base.shape, "soft_prompt" not in prompt.tensors
    common = {
        "auto_mapping": None, "base_model_name_or_path": where, "inference_mode": True, "modules_to_save": saved,
        "num_layers": shape.layers, "num_transformer_submodules": 1 if shape.decoder is None else 2,
        "num_virtual_tokens": prompt.num_virtual_tokens,
        "peft_version": VERSION, "revision": None, "task_type": way,
    }  # fmt: skip
    if is_prefix:
        own = shape if shape.decoder is None else shape.decoder
        width = own.kv_heads * own.head_dim
        return common | {
            # Of an encoder-decoder's it need not be the encoder's number (peft_stock).
            "num_layers": width_of_rows // (2 * width),
            "peft_type": "PREFIX_TUNING", "encoder_hidden_size": width, "init_weights": None,
            "num_attention_heads": own.kv_heads, "prefix_projection": False, "token_dim": width,
        }  # fmt: skip
    return common | {
        "peft_type": "PROMPT_TUNING", "num_attention_heads": shape.kv_heads, "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None, "token_dim": shape.embedding_width, "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }  # fmt: skip
