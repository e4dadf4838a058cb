"""A disk on which only what was synced survives: from the operations on it to the states that a power cut may leave.

Owns: which operations a sync makes durable, and which states are possible when the power goes after the n-th operation.
Must not know: who wrote, what the bytes mean, how the operations came to be known.

The rules are no more than what POSIX promises; the file systems in common use forget less:

- The bytes and the length of a file are durable once the file is synced, the names in a folder once the folder is.
  A sync of a new file says nothing of its name; a rename is durable once the folder of the new name is synced.
- A sync covers what was complete when it began.
- What no sync covers survives or not, each operation for itself, in whatever order: a rename without the bytes of
  the file, the second write without the first, a removal that comes undone. Only a rename is one thing: the old name
  goes as the new one comes.
- Of the last write, any part from its beginning may have reached the disk, up to a sector's end or to anywhere. The
  rest is not there; or it reads as zeros, where the new length came first.

With a `journal` it is a disk as ext4 and XFS make it by default: names survive in the order in which they were changed,
every sync takes with it all that were changed before, and a length never comes before its bytes.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loadtest.faults.live_tree import Bytes, Length, LiveTree, Name, Step
from loadtest.faults.operations import Operation, Sync, Tree

SECTOR = 512


class Tear(NamedTuple):
    """Of a write, so many bytes arrived; `zeros`: in a file that has its new length all the same."""

    operation: int
    arrived: int
    zeros: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """The power goes after `at` operations: those in `kept` (bit i: the i-th) survive, those in `torn` in part."""

    at: int
    kept: int
    torn: tuple[Tear, ...] = ()


class Disk:
    """A disk that held `base`, all of it durable, and then had `operations` done to it.

    A path that the operations name without having made it is a KeyError: the trace is not whole.
    """

    def __init__(self, base: Tree, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)
        live = LiveTree()
        self._base_bytes: dict[int, bytes] = {}
        for path, data in sorted(base.items()):
            node = live.add(path, None if data is None else len(data))
            if data is not None:
                self._base_bytes[node] = data
        self._base_folders = {node: dict(names) for node, names in live.folders.items()}
        self._steps: list[Step | None] = []
        self._syncs: dict[int, list[tuple[int, int, str]]] = {}  # of a node: when, covering what, by whom
        for operation in self.operations:
            if isinstance(operation, Sync):
                when = (len(self._steps), operation.covers, operation.by)
                self._syncs.setdefault(live.find(operation.path), []).append(when)
            self._steps.append(live.step(operation))
        self._folders = live.folders.keys()

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
                places = self._places_to_tear(at - 1, sectors)
                for arrived in places:
                    yield Cut(at, everything, (Tear(at - 1, arrived),))
                for arrived in (0, *places[len(places) // 2 :][:1]) if places and not journal else ():
                    yield Cut(at, everything, (Tear(at - 1, arrived, zeros=True),))

    def tree(self, cut: Cut) -> Tree:
        """What there is after a cut."""
        folders = {node: dict(names) for node, names in self._base_folders.items()}
        files: dict[int, bytearray] = {}
        torn = {tear.operation: tear for tear in cut.torn}
        for index in range(cut.at):
            step = self._steps[index]
            if step is None or not cut.kept >> index & 1:
                continue
            for effect in step.effects:
                if isinstance(effect, Name):
                    names = folders.setdefault(effect.folder, {})
                    if effect.node is None:
                        names.pop(effect.name, None)
                    else:
                        names[effect.name] = effect.node
                    continue
                if (content := files.get(effect.node)) is None:
                    content = files[effect.node] = bytearray(self._base_bytes.get(effect.node, b""))
                if isinstance(effect, Length):
                    del content[effect.size :]
                    content.extend(bytes(effect.size - len(content)))
                else:
                    data = effect.data
                    if tear := torn.get(index):
                        data = data[: tear.arrived] + bytes(len(data) - tear.arrived if tear.zeros else 0)
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
        torn: list[Tear] = []
        for index in kept:
            places = self._places_to_tear(index, 2)
            if places and chance.random() < 0.25:
                torn.append(Tear(index, chance.choice(places)))
        return Cut(at, durable | _mask(kept), tuple(torn))

    def _places_to_tear(self, index: int, sectors: int) -> Sequence[int]:
        """How much of a write may be there: up to the ends of some of its sectors, and to odd bytes."""
        step = self._steps[index]
        if step is None or not isinstance(written := step.effects[0], Bytes):
            return ()
        length = len(written.data)
        ends = range(-written.offset % SECTOR, length, SECTOR)
        some = {ends[n * (len(ends) - 1) // max(1, sectors - 1)] for n in range(sectors)} if ends else ()
        return sorted(place for place in {1, length // 2 | 1, length - 1, *some} if 0 < place < length)


def _mask(indices: Sequence[int]) -> int:
    return sum(1 << index for index in indices)
