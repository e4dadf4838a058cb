"""Ways in which the bytes of a stored prompt may change, and the places where it may happen.

Owns: the alterations, and how each place is written to behind the server's back. Must not know: what a server should
make of it.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from loadtest.faults.redis_process import RedisProcess


@dataclass(frozen=True, slots=True)
class Material:
    """A prompt's bytes, those of another version of its task, and those of another task."""

    data: bytes
    sibling: bytes
    stranger: bytes
    trap: Path  # what a pickle would make if anybody loaded it


Alteration = Callable[[Material, random.Random], bytes | None]
"""What stands in the prompt's place afterwards; None: nothing."""


def _flipped(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _bit_of_manifest(material: Material, rng: random.Random) -> bytes:
    return _flipped(material.data, rng.randrange(8, _header_end(material.data)), rng)


def _bit_of_tensors(material: Material, rng: random.Random) -> bytes:
    return _flipped(material.data, rng.randrange(_header_end(material.data), len(material.data)), rng)


def _cut(material: Material, rng: random.Random) -> bytes:
    return material.data[: rng.randrange(1, len(material.data))]


def _longer(material: Material, rng: random.Random) -> bytes:
    return material.data + rng.randbytes(rng.randrange(1, 100))


def _noise(material: Material, rng: random.Random) -> bytes:
    return rng.randbytes(len(material.data))


class _Trap:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


def _pickle(material: Material, _rng: random.Random) -> bytes:
    # As long as the prompt, so that its length does not give it away.
    return pickle.dumps(_Trap(material.trap)).ljust(len(material.data), b"\0")


ALTERATIONS: Final[Mapping[str, Alteration]] = {
    "bit of the manifest": _bit_of_manifest,
    "bit of a tensor": _bit_of_tensors,
    "cut short": _cut,
    "longer": _longer,
    "noise": _noise,
    "swapped": lambda material, _rng: material.sibling,  # and the sibling's place gets this one
    "same task's other prompt": lambda material, _rng: material.sibling,
    "another task's prompt": lambda material, _rng: material.stranger,
    "a pickle": _pickle,
    "empty": lambda _material, _rng: b"",
    "missing": lambda _material, _rng: None,
}
SWAP: Final = "swapped"


class Place(Protocol):
    """Where prompts lie by version."""

    def put(self, version: str, data: bytes | None) -> None:
        """Let these bytes stand there; None: nothing."""


class Folder:
    """Files named by version: the blobs of a file store, and the disk tier."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, version: str, data: bytes | None) -> None:
        """In place, as a disk that fails does it."""
        path = self._folder / f"{version}.safetensors"
        if data is None:
            path.unlink(missing_ok=True)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                path.chmod(0o644)
            path.write_bytes(data)


class RedisBlobs:
    """The keys of a store in Redis."""

    def __init__(self, redis: RedisProcess) -> None:
        self._redis = redis

    def put(self, version: str, data: bytes | None) -> None:
        """Overwrite or delete the key."""
        key = f"promptmux:blob:{version}"
        if data is None:
            self._redis.run("DEL", key)
        else:
            self._redis.run("SET", key, data)


class HostMemory:
    """A server's host tier, by way of `altered_server`, which reads what stands in its memory from a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, version: str, data: bytes | None) -> None:
        """For the next read of it; an empty file where nothing is to be found."""
        made = self._folder / f"{version}.new"
        made.write_bytes(b"gone" if data is None else b"data" + data)
        made.replace(self._folder / version)
