"""What both parts of the experiment on altered bytes share: a store with tasks, and the counts.

Owns: which version is altered where, and what a count has to be in the end. Must not know: servers.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtest.faults.alterations import ALTERATIONS, SWAP, Material, Place
from loadtest.faults.told_answers import ToldTasks
from prompt_store import version_of

COPIES: Final[Mapping[str, Sequence[str]]] = {
    "host": ("host",),
    "host and disk": ("host", "disk"),
    "all": ("host", "disk", "store"),
}
"""Which copies of a prompt are altered; the next one is good."""


@dataclass
class Count:
    """What came of one alteration in one store."""

    moves: int = 0
    refused: int = 0  # moves, as the admin API says, with the reason
    counted: int = 0  # moves, as the metric says
    old: int = 0  # requests after a move that the old version answered
    healed: int = 0  # moves whose version serves after it was published again
    slowest: float = 0.0  # seconds that this took
    reads: int = 0  # requests that found altered copies
    answered: int = 0  # reads: by the right version, from the next good copy
    unavailable: int = 0  # reads: 503, for there was no good copy
    altered: int = 0  # copies that a read came to look at
    found: int = 0  # of these, as the metrics of their tiers say
    reads_healed: int = 0  # reads that are answered again afterwards
    codes: Counter[str] = field(default_factory=Counter)  # why moves were refused
    others: Counter[str] = field(default_factory=Counter)  # answers that should not have been
    wrong: list[str] = field(default_factory=list)  # answers with scores of another version

    def passed(self, tries: int) -> bool:
        """Whether it went as wanted."""
        return (
            self.moves == self.refused == self.counted == self.healed == tries
            and self.old > 0
            and self.reads == self.answered + self.unavailable == self.reads_healed == tries * len(COPIES)
            and self.altered == self.found
            and not self.others
            and not self.wrong
        )


@dataclass
class Stage:
    """One store with tasks, and the place where its bytes lie."""

    name: str
    url: str
    folder: Path
    tasks: ToldTasks
    store: Place
    rng: random.Random
    counts: dict[str, Count]
    tries: int
    numbers: Iterator[int] = field(default_factory=itertools.count)  # of requests

    @property
    def trap(self) -> Path:
        """What a pickle makes if anybody loads it."""
        return self.folder / "a-pickle-was-loaded"

    def make(self, task: int) -> str:
        """The task's next version."""
        return version_of(self.tasks.make(task))

    def alter(self, how: str, task: int, version: str, *places: Place) -> list[str]:
        """Alter a version in these places, in each for itself; the versions that were altered."""
        sibling = self.make(task)
        stranger = self.make(1 if task == 0 else 0)
        data = self.tasks.data
        material = Material(data[version], data[sibling], data[stranger], self.trap)
        for place in places:
            place.put(version, ALTERATIONS[how](material, self.rng))
        if how != SWAP or self.store not in places:
            return [version]
        self.store.put(sibling, data[version])
        return [version, sibling]
