"""A scenario as it happened on the disk, and what may be seen after a cut at each place of it.

Owns: running the worker under strace, names for all syncs, and reading the worker's marks. Must not know: which states
a cut may leave, how a store is looked at.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.faults.crash_scenarios import SCENARIOS, State
from loadtest.faults.operations import Mark, Operation, Sync, Tree, Write, read_tree
from loadtest.faults.power_cut import Disk
from loadtest.faults.syscalls import record, run_to_the_end
from loadtest.server_process import ROOT

OURS: Final = "ours: "


class NotWhole(RuntimeError):
    """The trace does not account for what the folder holds: something was written that no call shows."""


@dataclass(frozen=True)
class Expected:
    """What may be seen after a cut: what was acknowledged last (None: nothing), or what the call under way makes."""

    acknowledged: State | None
    under_way: State | None = None
    call: str = ""


class Recording:
    """One run of a scenario: the disk, what is expected after each operation, and the syncs by whose they are."""

    def __init__(self, kind: str, scenario: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root, marks, earlier = (Path(folder).resolve() / name for name in ("root", "marks", "earlier"))
            root.mkdir()
            command = [sys.executable, "-m", "loadtest.faults.crash_worker", kind, scenario]
            path = {"PYTHONPATH": str(ROOT)}
            before: State | None = None
            if "setup" in SCENARIOS[kind][scenario]:
                setup = [*command, "setup", str(earlier)]
                run_to_the_end(setup, root, path)
                (before,) = _states(earlier.read_text().splitlines()).values()
            base = _without_shared_memory(read_tree(root))
            run = [*command, "run", str(marks)]
            operations = record(run, root, marks, ignore=_is_shared_memory, variables=path)
            self.disk = Disk(base, [*_named(operations, "SQLite" if kind == "file" else "Redis")])
            if self.disk.seen() != _without_shared_memory(read_tree(root)):
                raise NotWhole(f"{kind}, {scenario}: the folder is not what the trace says")
        self.expected = [*_expected(self.disk.operations, before)]
        self.syncs = Counter(one.by for one in self.disk.operations if isinstance(one, Sync))


def _expected(operations: Sequence[Operation], before: State | None) -> Iterator[Expected]:
    """Before all operations, after the first, …"""
    states = _states([one.text for one in operations if isinstance(one, Mark)])
    now = Expected(before)
    yield now
    for operation in operations:
        match operation.text.split(" ", 2) if isinstance(operation, Mark) else ():
            case ["CALL", number, call]:
                now = Expected(now.acknowledged, states[int(number)], call)
            case ["ACK", number]:
                now = Expected(states[int(number)])
        yield now


def _states(marks: Sequence[str]) -> Mapping[int, State]:
    told = [mark.split(" ", 2) for mark in marks if mark.startswith("STATE ")]
    return {int(number): json.loads(state) for _, number, state in told}


def _named(operations: Sequence[Operation], others: str) -> Iterator[Operation]:
    """The operations, with every sync's `by` telling whose it is and of what; `others` made those without a name."""
    written: dict[str, list[Write]] = {}  # to each file, since its last sync
    for operation in operations:
        if isinstance(operation, Write):
            written.setdefault(operation.path, []).append(operation)
        if not isinstance(operation, Sync):
            yield operation
            continue
        # Names made at random are one: of temporary files, and of those that hold a process's id.
        path = re.sub(r"[0-9a-f]{32}|\d{2,}", "*", operation.path) or "."
        since = written.pop(operation.path, [])
        if operation.by:
            yield dataclasses.replace(operation, by=f"{OURS}{operation.by} of {path}")
        else:
            head = [(one.offset, len(one.data)) for one in since] == [(0, 32)] and path.endswith("-wal")
            what = ", its head" if head else "" if since or "." not in path[1:] else ", nothing new"
            yield dataclasses.replace(operation, by=f"{others}: {path.rpartition('/')[2]}{what}")


def _is_shared_memory(path: str) -> bool:
    return path.endswith(".sqlite3-shm")


def _without_shared_memory(tree: Tree) -> Tree:
    """SQLite maps this file for its processes to share; after a cut it makes it anew."""
    return {path: data for path, data in tree.items() if not _is_shared_memory(path)}
