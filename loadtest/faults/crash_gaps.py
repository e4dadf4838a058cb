"""What a power cut may leave of Redis by the letter of POSIX, and is known: told, not held against the store.

Owns: how each known gap is recognized in what a cut left. Must not know: how cuts are tried or judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from loadtest.faults.operations import Tree

_FOLDER: Final = "appendonlydir"
_MANIFEST: Final = f"{_FOLDER}/appendonly.aof.manifest"


def _no_folder(tree: Tree) -> bool:
    return _FOLDER not in tree


def _no_named_log(tree: Tree) -> bool:
    """The manifest is there, and a file that it names is not."""
    manifest = tree.get(_MANIFEST)
    if manifest is None:
        return False
    words = [line.split() for line in manifest.decode(errors="replace").splitlines()]
    return any(len(line) > 1 and line[0] == "file" and f"{_FOLDER}/{line[1]}" not in tree for line in words)


MENDED: Final[Mapping[str, Callable[[Tree], bool]]] = {
    "the letter of POSIX: the folder in which `appendonlydir` was made is never synced": _no_folder,
    "the letter of POSIX: a rewritten log's name is synced only together with that of the manifest that names it": (
        _no_named_log
    ),
}
"""Of a Redis whose log is mended before each start: in words, and whether this is what a cut has left."""

UNMENDED: Final = (
    "a log that was torn inside a transaction is cut back to inside it (see `redis_log`)",
    "the letter of POSIX: a log with the length of its last write, and zeros for the bytes, is refused",
)
"""And of one that starts on the log as it is. All of that is only told."""


def known_gap(tree: Tree) -> str:
    """The gap that a mended Redis is known to have and that shows in this; "" for something else."""
    return next((told for told, shows in MENDED.items() if shows(tree)), "")
