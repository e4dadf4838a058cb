"""Owns the run's state on disk: written whole or not at all, read back bit for bit, so that a killed run goes
on.

Tensors are stored as safetensors, never pickle. Knows no model; what the tensors mean is the learner's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from trainer.errors import RunFolderError


@dataclass(frozen=True)
class Checkpoint:
    """Where a seed's training stands: named tensors, and plain values that JSON keeps exactly."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` so that a reader, or a restart after a crash, sees the old bytes or the new, never a
    part.

    Raises RunFolderError, with what was there left as it was, where the disk is full or the folder takes no files.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # where there is no room, it takes some
        raise RunFolderError(f"{path}: {error.strerror}") from None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; torn writes cannot replace a whole one."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in checkpoint.tensors.items()}
    values = json.dumps(dict(checkpoint.values), allow_nan=False)
    write_atomically(path, save(tensors, metadata={"values": values}))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None when there is none. Raises RunFolderError when the file is not one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}") from None
    try:
        length = int.from_bytes(data[:8], "little")
        values = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["values"])
        return Checkpoint(load(data), values)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path}: not a checkpoint of a run ({error}); delete {path.parent} and resume: training begins anew"
        ) from None
