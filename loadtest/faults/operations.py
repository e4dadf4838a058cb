"""What programs do to a folder, and what a folder holds, as plain values.

Owns: the kinds of operations, and reading and writing a whole folder. Must not know: what becomes durable, how the
operations came to be known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Tree = Mapping[str, bytes | None]
"""A folder as a value: paths within it, and the files' bytes; None for a folder."""


@dataclass(frozen=True, slots=True)
class Create:
    """A file is opened, and made if it is not there."""

    path: str


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """A folder is made."""

    path: str


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes are written at `offset`, at the end if that is None."""

    path: str
    offset: int | None
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Resize:
    """A file is cut, or filled up with zeros."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A file or folder gets another name; what had that name loses it."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Link:
    """A file gets one more name."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Remove:
    """A name is removed, of a file or of an empty folder."""

    path: str


@dataclass(frozen=True, slots=True)
class Sync:
    """A file or folder is synced: all of it that the first `covers` operations did. `by` says whose sync it is."""

    path: str
    covers: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a traced program said; nothing happens on the disk."""

    text: str


Operation = Create | MakeFolder | Write | Resize | Rename | Link | Remove | Sync | Mark


def read_tree(folder: Path) -> Tree:
    """All of a folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a folder that holds this."""
    folder.mkdir(parents=True)
    for path, data in sorted(tree.items()):
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)
