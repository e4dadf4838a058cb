"""Owns the start from another task's prompt (SPoT: Vu et al. 2022, arXiv 2110.07904): finding and checking it.

Where it may come from: a prompt file, a run folder (its prompt.safetensors), or TASK@STORE, where STORE is a store's
folder or URL and TASK may name an alias or a version, as in mnli:canary@file://store. Knows no training.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from backbone import Backbone
from prompt_store import Prompt, PromptStoreError, UnknownAlias, decode_prompt, open_store, version_of
from prompt_store.redis_url import without_secrets
from trainer.errors import ConfigError
from trainer.run_folder import RunFolder
from trainer.state import Checkpoint, load_checkpoint, save_checkpoint

Kind = Literal["soft", "prefix"]
_ALIAS = "current"


@dataclass(frozen=True)
class Source:
    """A prompt to start from, and the version that it is; `learned` is what its run trained, where that was kept."""

    prompt: Prompt
    version: str
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    precise: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def kind(self) -> Kind | None:
        """What it has: a soft prompt, a prefix, or (a head alone, a hard prompt) nothing to start from."""
        names = self.prompt.tensors.keys()
        if any(name.startswith("prefix.") for name in names):
            return "prefix"
        return "soft" if "soft_prompt" in names else None

    def tensors(self) -> dict[str, Tensor]:
        """Its soft prompt or prefix, float32, named as in the file; in full precision from a run folder."""
        return {name: tensor for name, tensor in self._all().items() if _is_prompt(name)}

    def head(self) -> dict[str, Tensor]:
        """The tensors of its head, float32, named as in the file."""
        return {name: tensor for name, tensor in self._all().items() if not _is_prompt(name)}

    @property
    def digest(self) -> str:
        """Of the numbers that a training starts from: a run folder's differ from its file's, which are rounded."""
        parts = [self.version.encode()]
        for tensors in (self.learned, self.precise):
            for name in sorted(tensors):
                parts += [name.encode(), tensors[name].contiguous().numpy().tobytes()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def _all(self) -> dict[str, Tensor]:
        stored = {
            name: torch.from_numpy(np.asarray(array, dtype=np.float32).copy())
            for name, array in self.prompt.tensors.items()
        }
        return stored | dict(self.precise)


def _is_prompt(name: str) -> bool:
    return name == "soft_prompt" or name.startswith("prefix.")


def save_learned(path: Path, raw: Mapping[str, Tensor], prompt: Mapping[str, Tensor]) -> None:
    """Keep what a seed trained and what it folds to, in full precision, for a start that loses nothing."""
    tensors = {f"raw/{name}": tensor for name, tensor in raw.items()}
    # Copies: where nothing is folded both are the same tensors, and the file wants each to have memory of its own.
    tensors |= {f"prompt/{name}": tensor.clone() for name, tensor in prompt.items()}
    save_checkpoint(path, Checkpoint(tensors))


def read_source(where: str, version: str | None = None) -> Source:
    """Read the prompt that `where` names; `version` is the one that it must be, or in a store the one to take.

    Raises ConfigError with one line: nothing there, no prompt file, or not this version any more.
    """
    data = _bytes(where, version)
    found = version_of(data)
    if version is not None and found != version:
        raise ConfigError(
            f"prompt.init_from: {without_secrets(where)} is no longer version {version[:12]}, from which this run "
            "began; put that file back, or start a new run"
        )
    try:
        return Source(decode_prompt(data), found, *_learned(Path(where)))
    except PromptStoreError as error:
        raise ConfigError(f"prompt.init_from: {without_secrets(where)}: {error}") from None


def check_source(source: Source, kind: Kind, backbone: Backbone) -> None:
    """Refuse what this backbone or this kind of prompt cannot start from. Raises ConfigError."""
    manifest = source.prompt.manifest
    if manifest.backbone.fingerprint != backbone.fingerprint:
        raise ConfigError(
            f"prompt.init_from: the prompt of {manifest.task_id!r} was trained for {manifest.backbone.name}, and this "
            f"run's backbone is {backbone.name}: a prompt means something to its own model only"
        )
    if manifest.members:
        raise ConfigError(
            f"prompt.init_from: the prompt of {manifest.task_id!r} is an ensemble of {len(manifest.members)}, and a "
            "training starts from one prompt: name one seed's file, such as seeds/seed-0.safetensors in its run folder"
        )
    if source.kind != kind:
        has = {"soft": "a soft prompt", "prefix": "a prefix", None: "neither soft prompt nor prefix"}
        raise ConfigError(
            f"prompt.init_from: the prompt of {manifest.task_id!r} has {has[source.kind]}, and this method starts from "
            f"{has[kind]}: name another prompt, or use the method that it was trained with ({manifest.method})"
        )


def _learned(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the best seed of a run folder trained, and what that folds to; nothing where it was not kept."""
    run = RunFolder(folder)
    if not folder.is_dir() or not run.metrics.exists():
        return {}, {}
    try:
        seed = json.loads(run.metrics.read_text(encoding="utf-8"))["best_seed"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"prompt.init_from: {run.metrics} cannot be read as a run's scores, which say whose seed is the best; "
            f"put it back, or name {run.prompt}"
        ) from None
    saved = None if seed is None else load_checkpoint(run.learned(seed))
    if saved is None:
        return {}, {}
    raw, prompt = (
        {name.removeprefix(part): t for name, t in saved.tensors.items() if name.startswith(part)}
        for part in ("raw/", "prompt/")
    )
    return raw, prompt


def _bytes(where: str, version: str | None) -> bytes:
    path = Path(where)
    task, at, store = where.partition("@")
    try:
        if path.is_dir():
            return RunFolder(path).prompt.read_bytes()
        if path.is_file() or not at:
            return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"prompt.init_from: {error.filename}: {error.strerror}; expected a prompt file, a run folder, or TASK@STORE"
        ) from None
    if "://" not in store.removeprefix("file://") and not Path(store.removeprefix("file://")).is_dir():
        raise ConfigError(f"prompt.init_from: there is no store in {store}")
    name, _, wanted = task.partition(":")
    try:
        return asyncio.run(_from_store(store, name, version or wanted or _ALIAS))
    except PromptStoreError as error:
        raise ConfigError(f"prompt.init_from: {without_secrets(store)}: {error}") from None


async def _from_store(url: str, task: str, version: str) -> bytes:
    store = open_store(url)
    try:
        record = await store.task(task)
        if all(known.version != version for known in record.versions):
            if version not in record.aliases:
                raise UnknownAlias(f"task {task} has no alias or version {version}")
            version = max(record.aliases[version].targets, key=lambda target: target.weight).version
        return await store.get(task, version)
    finally:
        await store.aclose()
