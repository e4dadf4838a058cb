"""Owns which task an adapter becomes, and which base model it is for: the caller's word, or what PEFT's files say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from backbone import Backbone, BackboneError, load_backbone
from backbone.loader import locate
from prompt_store import InvalidTaskId, check_task_id
from trainer.errors import AdapterError
from trainer.peft_format import Adapter

# Where PEFT can get the built-in backbone's weights: what that model is called on Hugging Face's hub.
BUILT_IN_ON_HUB: Final = "sentence-transformers/all-MiniLM-L6-v2"


def task_of(adapter: Adapter, given: str | None) -> str:
    """The task's id: `given`, or the folder's name as near as an id comes to it. Raises AdapterError."""
    if given is not None:
        try:
            return check_task_id(given)
        except InvalidTaskId as error:
            raise AdapterError(f"--task {given!r}: {error}") from None
    name = re.sub(r"[^a-z0-9._-]+", "-", adapter.folder.resolve().name.lower()).lstrip("._-")[:64]
    if not name:
        raise AdapterError(f"{adapter.folder}: no task can be called that: name one with --task")
    return name


def base_of(adapter: Adapter, given: str | None) -> tuple[Path, Backbone]:
    """The base model's folder, and the model itself in float32 on the CPU.

    `given` is a folder or a Hugging Face id; None: the one that the adapter names. Raises AdapterError.
    """
    name = given or adapter.config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise AdapterError("the adapter does not name its base model: name it with --backbone")
    revision, found = None if given else adapter.config.get("revision"), False
    try:
        folder = locate(name, revision)
        found = True
        # Nothing is computed that speed matters for, and float32 has room for every value that an adapter may have.
        return folder, load_backbone(name, device="cpu", dtype="float32", revision=revision, kernels="off")
    except BackboneError as error:
        # Another place does not help a model that is here and cannot be served.
        advice = "" if given or found else "; --backbone names it where it is here"
        if not found and name == BUILT_IN_ON_HUB:
            advice = "; it is built in: --backbone minilm"
        raise AdapterError(f"the adapter's base model: {error}{advice}") from None
