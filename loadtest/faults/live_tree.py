"""Files and folders as every program sees them, and what each operation changes there.

Owns: paths, names and lengths while nothing is lost. Must not know: what becomes durable.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.faults.operations import (
    Create,
    Link,
    MakeFolder,
    Mark,
    Operation,
    Remove,
    Rename,
    Resize,
    Sync,
    Write,
)


@dataclass(frozen=True, slots=True)
class Name:
    """`name` in `folder` now means `node`; None: nothing."""

    folder: int
    name: str
    node: int | None


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes of a file."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Length:
    """The length of a file."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Step:
    """An operation's effects, and the file or folder whose sync makes them durable."""

    home: int
    effects: tuple[Name | Bytes | Length, ...]

    @property
    def is_name(self) -> bool:
        """Whether it changes names, and no file."""
        return isinstance(self.effects[0], Name)


class LiveTree:
    """A root folder, 0, and in it what was added and made. Every file and folder is a number, whatever its names."""

    def __init__(self) -> None:
        self.folders: dict[int, dict[str, int]] = {0: {}}
        self._sizes: dict[int, int] = {}
        self._nodes = 1

    def add(self, path: str, size: int | None) -> int:
        """What was there before all operations: a file of that size, or a folder."""
        folder, name = self._place(path)
        node = self.folders[folder][name] = self._new(is_folder=size is None)
        if size is not None:
            self._sizes[node] = size
        return node

    def step(self, operation: Operation) -> Step | None:
        """Do it; None: nothing changed."""
        match operation:
            case Create(path) | MakeFolder(path):
                folder, name = self._place(path)
                if name in self.folders[folder]:
                    return None
                return self._named((folder, name, self._new(is_folder=isinstance(operation, MakeFolder))))
            case Write(path, offset, data):
                node = self.find(path)
                at = self._sizes[node] if offset is None else offset
                self._sizes[node] = max(self._sizes[node], at + len(data))
                return Step(node, (Bytes(node, at, data),))
            case Resize(path, size):
                node = self.find(path)
                if self._sizes[node] == size:
                    return None
                self._sizes[node] = size
                return Step(node, (Length(node, size),))
            case Rename(path, target):
                return self._named((*self._place(target), self.find(path)), (*self._place(path), None))
            case Link(path, target):
                return self._named((*self._place(target), self.find(path)))
            case Remove(path):
                self.find(path)
                return self._named((*self._place(path), None))
            case Sync() | Mark():
                return None

    def _named(self, *changes: tuple[int, str, int | None]) -> Step:
        """A step that changes names; the sync of the first one's folder makes it durable."""
        for folder, name, node in changes:
            if node is None:
                del self.folders[folder][name]
            else:
                self.folders[folder][name] = node
        return Step(changes[0][0], tuple(Name(*change) for change in changes))

    def _new(self, *, is_folder: bool) -> int:
        node, self._nodes = self._nodes, self._nodes + 1
        if is_folder:
            self.folders[node] = {}
        else:
            self._sizes[node] = 0
        return node

    def _place(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        return self.find(folder), name

    def find(self, path: str) -> int:
        """The file or folder at a path; KeyError."""
        node = 0
        for name in path.split("/") if path else ():
            node = self.folders[node][name]
        return node
