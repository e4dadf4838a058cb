"""Owns the folder that PEFT writes for one adapter: which files it has, what their keys mean, what is no prompt.

    adapter_config.json          JSON; absent keys mean PEFT's defaults, unknown ones are kept and change nothing
    adapter_model.safetensors    prompt_embeddings, prefix_task_{cols,rows}, and the head as base_model.{its name}

Written for PEFT 0.21.2, whose code and whose files the tests compare with. Never imports PEFT. Knows no backbone.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load

from prompt_store.prompt import Array
from prompt_store.strict_json import strict_json
from trainer.errors import AdapterError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
VERSION = "0.21.2"
# Where in the folder's tensors the prompt itself is; the rest is the head.
PROMPT, TASK_COLS, TASK_ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
HEAD_PREFIX = "base_model."

_METHODS = {
    "PROMPT_TUNING": "peft-prompt-tuning",
    "P_TUNING": "peft-p-tuning",
    "PREFIX_TUNING": "peft-prefix-tuning",
    "MULTITASK_PROMPT_TUNING": "peft-multitask-prompt-tuning",
    "CPT": "peft-cpt",
}
_TASKS = {
    "TOKEN_CLS": "labels single tokens, and a prompt here labels whole texts",
    "QUESTION_ANS": "marks answers inside a text, and a prompt here labels whole texts",
    "FEATURE_EXTRACTION": "gives features and has no head: there are no labels to answer with",
}
# Keys whose values are places on somebody's machine: the same adapter must give the same bytes anywhere.
_PLACES = ("base_model_name_or_path", "tokenizer_name_or_path", "prompt_tuning_init_state_dict_path")
_LARGEST = 1_000_000
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Adapter:
    """An adapter of a kind that can become a prompt, as its files say. `tensors` are float32, under PEFT's names."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Array]
    digests: Mapping[str, str]

    @property
    def peft_type(self) -> str:
        """PEFT's name of the method."""
        return str(self.config["peft_type"])

    @property
    def task_type(self) -> str:
        """PEFT's name of what the model is used for."""
        return str(self.config["task_type"])

    @property
    def method(self) -> str:
        """The manifest's `method`."""
        return _METHODS[self.peft_type]

    @property
    def is_prefix(self) -> bool:
        """Whether it is keys and values in every layer, and not vectors at the embeddings."""
        return self.peft_type == "PREFIX_TUNING"

    @property
    def num_virtual_tokens(self) -> int:
        """How many virtual tokens PEFT uses; a sequence-to-sequence model's files hold twice as many rows."""
        if self.peft_type == "CPT" and self.config.get("num_virtual_tokens") is None:
            ids = self.config.get("cpt_token_ids")
            if ids is not None and not isinstance(ids, list):
                raise AdapterError(f"{self.folder / CONFIG}: cpt_token_ids must be a list of token ids")
            return len(ids or [0])
        count = _count(self.config, "num_virtual_tokens")
        if count is None:
            rows = self.tensors[PROMPT].shape[:1]
            likely = f"; by {PROMPT} it is {rows[0] // self.submodules}" if rows else ""
            raise AdapterError(
                f"{self.folder / CONFIG}: num_virtual_tokens is missing, which PEFT always writes: put it there{likely}"
            )
        return count

    @property
    def submodules(self) -> int:
        """PEFT's num_transformer_submodules: 2 where encoder and decoder count apart."""
        default = 2 if self.task_type == "SEQ_2_SEQ_LM" else 1
        return _count(self.config, "num_transformer_submodules") or default

    def size(self, key: str) -> int | None:
        """A whole number among the configuration's keys, or None where PEFT takes the model's own."""
        return _count(self.config, key)

    def record(self, task_index: int | None) -> dict[str, Any]:
        """Where the prompt comes from, for the manifest's `training`: PEFT's configuration without its paths."""
        config = {key: value for key, value in self.config.items() if key not in _PLACES}
        record = {"config": config, "sha256": dict(self.digests)}
        return {"peft": record if task_index is None else {**record, "task_index": task_index}}


def read_adapter(folder: Path) -> Adapter:
    """Read and check an adapter's folder, or the one subfolder of it that has an adapter.

    Raises:
        AdapterError: not PEFT's, damaged, in a format that runs code, or nothing that could be a prompt.

    """
    folder = _adapter_folder(folder)
    config, config_digest = _config(folder / CONFIG)
    _refuse_other_kinds(config, folder / CONFIG)
    tensors, weights_digest = _tensors(folder)
    if PROMPT not in tensors:
        raise AdapterError(f"{folder / WEIGHTS}: no tensor {PROMPT}: it holds no prompt")
    if tensors[PROMPT].ndim != 2:
        raise AdapterError(
            f"{folder / WEIGHTS} is not what PEFT wrote: {PROMPT} must be a matrix, and its shape is "
            f"{list(tensors[PROMPT].shape)}"
        )
    return Adapter(folder, config, tensors, {CONFIG: config_digest, WEIGHTS: weights_digest})


def _adapter_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise AdapterError(f"no folder {folder}: name the folder that PEFT's save_pretrained wrote")
    if (folder / CONFIG).is_file():
        return folder
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not found:
        raise AdapterError(f"{folder} has no {CONFIG}: name the folder that PEFT's save_pretrained wrote")
    if len(found) > 1:
        raise AdapterError(f"{folder} has several adapters: name one of {', '.join(map(str, found))}")
    return found[0]


def _config(path: Path) -> tuple[dict[str, Any], str]:
    data = _bytes(path)
    try:
        config = strict_json(data.decode("utf-8-sig"))
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise AdapterError(f"{path}: no peft_type: this is not what PEFT wrote")
    return config, hashlib.sha256(data).hexdigest()


def _refuse_other_kinds(config: Mapping[str, Any], path: Path) -> None:
    kind, task = config["peft_type"], config.get("task_type")
    if kind == "CARTRIDGE":
        raise AdapterError(
            f"{path}: CARTRIDGE is a prefix made from one document, for questions about it, and labels nothing: "
            "it cannot be imported"
        )
    if kind not in _METHODS:
        raise AdapterError(
            f"{path}: {kind} is none of PEFT's prompts ({', '.join(_METHODS)}); what changes the model's own weights "
            "or layers cannot be served as one: train the task again with promptmux train"
        )
    if isinstance(task, str) and task in _TASKS:
        raise AdapterError(f"{path}: a {task} adapter {_TASKS[task]}")
    if task not in ("SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        raise AdapterError(
            f"{path}: task_type must be SEQ_CLS, CAUSAL_LM or SEQ_2_SEQ_LM, which say how the model answers; "
            f"it is {task!r}"
        )


def _tensors(folder: Path) -> tuple[dict[str, Array], str]:
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLE).is_file():
        raise AdapterError(
            f"{folder / PICKLE} is a pickle, which may run code, and is not read; if you trust it, convert it with: "
            f"{conversion(folder)}"
        )
    if not path.exists():
        raise AdapterError(
            f"{folder} has no {WEIGHTS}: copy or download the folder again; weights in several files must first be "
            "saved as one, by loading the adapter with PEFT and save_pretrained"
        )
    data = _bytes(path)
    try:
        # torch reads bfloat16, which numpy has not; to float32 both half formats are widened exactly.
        loaded = load(data)
    except SafetensorError as error:
        if data.startswith(_LFS):
            raise AdapterError(
                f"{path} only says where Git LFS keeps the weights: run git lfs pull"
            ) from None
        raise AdapterError(f"{path} is damaged: {error}") from None
    tensors: dict[str, Array] = {}
    for name, tensor in loaded.items():
        if not tensor.is_floating_point():
            raise AdapterError(f"{path}: tensor {name} holds no floating-point numbers")
        tensors[name] = np.ascontiguousarray(tensor.float().numpy())
        if not np.isfinite(tensors[name]).all():
            raise AdapterError(
                f"{path}: tensor {name} has values that are not finite: its training had failed"
            )
    return tensors, hashlib.sha256(data).hexdigest()


def conversion(folder: Path) -> str:
    """The command that writes a folder's pickle as safetensors, without running what else may be in it."""
    code = (
        "import sys, torch, safetensors.torch as s; d = sys.argv[1]; "
        f"w = torch.load(d + '/{PICKLE}', map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.clone() for k, v in w.items()}}, d + '/{WEIGHTS}')"
    )
    return f'python -c "{code}" {shlex.quote(str(folder))}'


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}") from None


def _count(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise AdapterError(f"{CONFIG}: {key} must be a whole number of at least 1")
    return value
