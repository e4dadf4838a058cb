"""Where this server's catalogue stands in the store's history.

Owns: the revision that is served, how old it is, where it came from, and who waits for a later one. Must not know: the
store, tasks, HTTP. It only goes forward; only a history that was lost makes it go back, and that is counted.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from prompt_store import Revision
from server.metrics import Metrics

Source = Literal["none", "snapshot", "store"]


class View:
    """The revision that is served. Changed by `prompt_sync` only."""

    def __init__(self, metrics: Metrics) -> None:
        self._revision: Revision | None = None
        self._text = ""
        self._source: Source = "none"
        self._as_of = time.monotonic()
        self._losses = 0
        self._former: set[str] = set()  # epochs that came to an end while this process lives; they are few
        self._moved = asyncio.Event()
        metrics.watch(metrics.store_staleness, lambda: self.staleness)
        metrics.watch(metrics.store_revision, lambda: self._revision.number if self._revision else 0)
        metrics.watch(metrics.serving_snapshot, lambda: float(self._source == "snapshot"))

    @property
    def revision(self) -> Revision | None:
        """What the catalogue has taken in; single tasks may be ahead of it. None before there is a catalogue."""
        return self._revision

    @property
    def text(self) -> str:
        """The revision as a header has it: `<epoch>:<number>`, empty before there is one."""
        return self._text

    @property
    def source(self) -> Source:
        """Whether the catalogue is the store's or the last good snapshot of it."""
        return self._source

    @property
    def staleness(self) -> float:
        """Seconds since the catalogue was all that the store had, by its answer's arrival.

        Less than the truth by the time that the answer was under way.
        """
        return time.monotonic() - self._as_of

    @property
    def losses(self) -> int:
        """How often history was lost: what was written down about revisions before that has no meaning now."""
        return self._losses

    def recall(self, revision: Revision, age: float) -> None:
        """The catalogue is a snapshot that was true `age` seconds ago."""
        self._revision, self._text = revision, revision_text(revision)
        self._source, self._as_of = "snapshot", time.monotonic() - age

    def goes_back(self, revision: Revision) -> bool:
        """Whether a store at `revision` has lost history that this server knows."""
        known = self._revision
        return known is not None and (known.epoch != revision.epoch or revision.number < known.number)

    def advance(self, revision: Revision, as_of: float, *, lost: bool = False) -> None:
        """The catalogue has taken in all up to `revision`, as the store stood at `as_of` (monotonic seconds)."""
        if lost:
            self._losses += 1
            if self._revision is not None:
                self._former.add(self._revision.epoch)
        elif self.goes_back(revision):
            return  # an answer that was overtaken by a newer one
        self._former.discard(revision.epoch)  # a backup may bring an old epoch back
        moved = revision != self._revision
        self._revision, self._source, self._as_of = revision, "store", as_of
        if moved:
            self._text = revision_text(revision)
            self._moved.set()
            self._moved = asyncio.Event()

    async def reached(self, wanted: Revision, patience: float) -> bool:
        """Wait until the view has `wanted`; False when `patience` seconds were not enough, or it `is_lost`.

        A revision of an unknown epoch is waited for, too: this server may not have heard of that epoch yet.
        """
        try:
            async with asyncio.timeout(patience):
                while not self._has(wanted):
                    if self.is_lost(wanted):
                        return False
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def is_lost(self, wanted: Revision) -> bool:
        """Whether `wanted` is of a history that is known to have ended: waiting is in vain."""
        return wanted.epoch in self._former

    def _has(self, wanted: Revision) -> bool:
        own = self._revision
        return own is not None and own.epoch == wanted.epoch and own.number >= wanted.number


def revision_text(revision: Revision) -> str:
    """A revision as callers carry it about."""
    return f"{revision.epoch}:{revision.number}"


def parse_revision(text: str) -> Revision:
    """What `revision_text` wrote; ValueError for anything else."""
    epoch, colon, number = text.rpartition(":")
    if not (colon and 0 < len(epoch) <= 64 and epoch.isascii() and epoch.replace("-", "").isalnum()):
        raise ValueError("expected <epoch>:<number>")
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise ValueError("expected <epoch>:<number>")
    return Revision(epoch, int(number))
