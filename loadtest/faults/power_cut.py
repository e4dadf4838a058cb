"""A disk on which only what was synced survives: from the operations on it to the states that a power cut may leave.

Owns: which operations a sync makes durable, and which states are possible when the power goes after the n-th operation.
Must not know: who wrote, what the bytes mean, how the operations came to be known.

The rules are those that POSIX promises, and no file system in common use is as forgetful:

- The bytes and the length of a file are durable once the file is synced, the names in a folder once the folder is.
  A sync of a new file says nothing of its name; a rename is durable once the folder of the new name is synced.
- A sync covers what was complete when it began.
- What no sync covers survives or not, each operation for itself, in whatever order: a rename without the bytes of
  the file, the second write without the first, a removal that comes undone. Only a rename is one thing: no cut
  leaves both names or neither.
- Of the last write, any part from its beginning may have reached the disk: cut at a sector, or anywhere.

With a `journal` it is a disk as ext4 and XFS make it: names survive in the order in which they were changed, and every
sync takes with it all that were changed before. Bytes are as above.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
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
    Tree,
    Write,
)

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Cut:
    """The power goes after `at` operations: those in `kept` (bit i: the i-th) survive, of `torn` only some bytes."""

    at: int
    kept: int
    torn: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class _Name:
    """An effect: `name` in `folder` now means `node`; None: nothing."""

    folder: int
    name: str
    node: int | None


@dataclass(frozen=True, slots=True)
class _Bytes:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Length:
    node: int
    size: int


@dataclass(frozen=True, slots=True)
class _Step:
    """An operation's effects, and the file or folder whose sync makes them durable."""

    home: int
    effects: tuple[_Name | _Bytes | _Length, ...]

    @property
    def is_name(self) -> bool:
        return isinstance(self.effects[0], _Name)


class Disk:
    """A disk that held `base`, all of it durable, and then had `operations` done to it.

    A path that the operations name without having made it is a KeyError: the trace is not whole.
    """

    def __init__(self, base: Tree, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)
        self._folders: dict[int, dict[str, int]] = {0: {}}  # as every program saw them: nothing is lost
        self._sizes: dict[int, int] = {}
        self._nodes = 1
        self._base_bytes: dict[int, bytes] = {}
        for path, data in sorted(base.items()):
            folder, name = self._place(path)
            node = self._folders[folder][name] = self._new(is_folder=data is None)
            if data is not None:
                self._base_bytes[node], self._sizes[node] = data, len(data)
        self._base_folders = {node: dict(names) for node, names in self._folders.items()}
        self._steps: list[_Step | None] = []
        self._syncs: dict[int, list[tuple[int, int, str]]] = {}  # of a node: when, covering what, by whom
        for operation in self.operations:
            if isinstance(operation, Sync):
                when = (len(self._steps), operation.covers, operation.by)
                self._syncs.setdefault(self._find(operation.path), []).append(when)
            self._steps.append(self._step(operation))

    def seen(self) -> Tree:
        """The tree as the programs left it."""
        return self.tree(Cut(len(self._steps), (1 << len(self._steps)) - 1))

    def cuts(
        self,
        *,
        deaf: Collection[str] = (),
        journal: bool = False,
        samples: int = 4,
        sectors: int = 2,
        seed: int = 0,
    ) -> Iterator[Cut]:
        """What a cut after each operation may leave, the syncs by `deaf` having done nothing.

        Everything not covered lost; everything kept; all other combinations if they are at most `samples`, else so
        many at random, with torn writes among them; and the last write torn after at most `sectors` of its sectors,
        and at odd bytes.
        """
        durable_at = self._durable_at(deaf, journal=journal)
        for at in range(len(self._steps) + 1):
            durable = _mask([index for index in range(at) if durable_at[index] < at])
            pending = [index for index in range(at) if self._steps[index] and durable_at[index] >= at]
            everything = durable | _mask(pending)
            yield Cut(at, durable)
            if not pending:
                continue
            yield Cut(at, everything)
            if 2 ** len(pending) - 2 <= samples and not journal:
                for number in range(1, 2 ** len(pending) - 1):
                    yield Cut(
                        at, durable | _mask([i for place, i in enumerate(pending) if number >> place & 1])
                    )
            else:
                # The same choice after every operation that leaves the same things open: no needless new states.
                chance = random.Random(f"{seed}/{durable}/{pending}")
                for _ in range(samples):
                    yield self._any_cut(at, durable, pending, chance, journal=journal)
            if pending[-1] == at - 1:
                for length in self._places_to_tear(at - 1, sectors):
                    yield Cut(at, everything, ((at - 1, length),))

    def tree(self, cut: Cut) -> Tree:
        """What there is after a cut."""
        folders = {node: dict(names) for node, names in self._base_folders.items()}
        files: dict[int, bytearray] = {}
        torn = dict(cut.torn)
        for index in range(cut.at):
            step = self._steps[index]
            if step is None or not cut.kept >> index & 1:
                continue
            for effect in step.effects:
                if isinstance(effect, _Name):
                    names = folders.setdefault(effect.folder, {})
                    if effect.node is None:
                        names.pop(effect.name, None)
                    else:
                        names[effect.name] = effect.node
                    continue
                if (content := files.get(effect.node)) is None:
                    content = files[effect.node] = bytearray(self._base_bytes.get(effect.node, b""))
                if isinstance(effect, _Length):
                    del content[effect.size :]
                    content.extend(bytes(effect.size - len(content)))
                else:
                    data = effect.data[: torn.get(index, len(effect.data))]
                    content.extend(bytes(max(0, effect.offset - len(content))))
                    content[effect.offset : effect.offset + len(data)] = data
        tree: dict[str, bytes | None] = {}
        reached = [("", 0)]
        while reached:
            path, folder = reached.pop()
            for name, node in folders.get(folder, {}).items():
                if node in self._folders:
                    tree[path + name] = None
                    reached.append((f"{path}{name}/", node))
                else:
                    found = files.get(node)
                    tree[path + name] = self._base_bytes.get(node, b"") if found is None else bytes(found)
        return tree

    # ── what the operations mean, seen from the programs ──────────────────

    def _step(self, operation: Operation) -> _Step | None:
        match operation:
            case Create(path) | MakeFolder(path):
                folder, name = self._place(path)
                if name in self._folders[folder]:
                    return None
                return self._named((folder, name, self._new(is_folder=isinstance(operation, MakeFolder))))
            case Write(path, offset, data):
                node = self._find(path)
                at = self._sizes[node] if offset is None else offset
                self._sizes[node] = max(self._sizes[node], at + len(data))
                return _Step(node, (_Bytes(node, at, data),))
            case Resize(path, size):
                node = self._find(path)
                if self._sizes[node] == size:
                    return None
                self._sizes[node] = size
                return _Step(node, (_Length(node, size),))
            case Rename(path, target):
                return self._named((*self._place(target), self._find(path)), (*self._place(path), None))
            case Link(path, target):
                return self._named((*self._place(target), self._find(path)))
            case Remove(path):
                self._find(path)
                return self._named((*self._place(path), None))
            case Sync() | Mark():
                return None

    def _named(self, *changes: tuple[int, str, int | None]) -> _Step:
        """A step that changes names; the sync of the first one's folder makes it durable."""
        for folder, name, node in changes:
            if node is None:
                del self._folders[folder][name]
            else:
                self._folders[folder][name] = node
        return _Step(changes[0][0], tuple(_Name(*change) for change in changes))

    def _new(self, *, is_folder: bool) -> int:
        node, self._nodes = self._nodes, self._nodes + 1
        if is_folder:
            self._folders[node] = {}
        else:
            self._sizes[node] = 0
        return node

    def _place(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        return self._find(folder), name

    def _find(self, path: str) -> int:
        node = 0
        for name in path.split("/") if path else ():
            node = self._folders[node][name]
        return node

    # ── what a cut may leave ──────────────────────────────────────────────

    def _durable_at(self, deaf: Collection[str], *, journal: bool) -> list[float]:
        """For each operation, the sync that makes it durable."""
        heard = {
            node: [(when, covers) for when, covers, by in syncs if by not in deaf]
            for node, syncs in self._syncs.items()
        }
        anywhere = [sync for syncs in heard.values() for sync in syncs]
        durable_at = [float("inf")] * len(self._steps)
        for index, step in enumerate(self._steps):
            if step is not None:
                syncs = anywhere if journal and step.is_name else heard.get(step.home, ())
                durable_at[index] = min(
                    (when for when, covers in syncs if index < covers), default=float("inf")
                )
        return durable_at

    def _any_cut(
        self, at: int, durable: int, pending: Sequence[int], chance: random.Random, *, journal: bool
    ) -> Cut:
        names = [index for index in pending if (step := self._steps[index]) and step.is_name]
        last = chance.choice([-1, *names])  # in a journal: no name after this one
        kept = [
            index
            for index in pending
            if (index <= last if journal and index in names else chance.random() < 0.5)
        ]
        torn = []
        for index in kept:
            places = self._places_to_tear(index, 2)
            if places and chance.random() < 0.25:
                torn.append((index, chance.choice(places)))
        return Cut(at, durable | _mask(kept), tuple(torn))

    def _places_to_tear(self, index: int, sectors: int) -> Sequence[int]:
        """How much of a write may be there: up to the ends of some of its sectors, and to odd bytes."""
        step = self._steps[index]
        if step is None or not isinstance(written := step.effects[0], _Bytes):
            return ()
        length = len(written.data)
        ends = range(-written.offset % SECTOR, length, SECTOR)
        some = {ends[n * (len(ends) - 1) // max(1, sectors - 1)] for n in range(sectors)} if ends else ()
        return sorted(place for place in {1, length // 2 | 1, length - 1, *some} if 0 < place < length)


def _mask(indices: Sequence[int]) -> int:
    return sum(1 << index for index in indices)
