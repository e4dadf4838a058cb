"""Which versions are on the device, and where: the slot table.

Owns: slots, pins, what is evicted (least recently used, by bytes), and one load for many waiters. Must not
know: where prompts come from, tensors, HTTP, aliases. Changed on the event loop only, so it needs no lock. A
pinned slot is never evicted: whoever pinned it finishes on the version it started with.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from prompt_store import StoreUnavailable
from server.metrics import Metrics

if TYPE_CHECKING:
    from backbone import RowEncoder
    from prompt_store import Manifest

_RETRY_FAILED_AFTER: Final = (
    2.0  # seconds: a version that cannot be loaded must not be fetched for every request
)
# What a slot takes beside its values, and counts for: the tensors' own objects, manifest, encoder, labels, its place in
# the tables. Measured: 13 to 18 KB, whatever the prompt's size: for one of 20 tokens about as much as its values.
SLOT_OVERHEAD: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load leaves on this side of the device: how to make rows, and what the answer needs.

    `nbytes` are the values' alone.
    """

    manifest: Manifest
    encoder: RowEncoder
    nbytes: int
    num_virtual_tokens: int


class Slot:
    """A version on the device."""

    __slots__ = (
        "encoder",
        "index",
        "labels_json",
        "manifest",
        "members",
        "nbytes",
        "num_virtual_tokens",
        "pins",
        "takes_pair",
        "version",
    )

    def __init__(self, version: str, index: int, loaded: Loaded) -> None:
        self.version, self.index = version, index
        self.manifest, self.encoder = loaded.manifest, loaded.encoder
        self.members = max(1, len(loaded.manifest.members))  # rows on the device for each text
        self.nbytes = loaded.nbytes + SLOT_OVERHEAD * self.members
        self.num_virtual_tokens = loaded.num_virtual_tokens
        self.takes_pair = loaded.encoder.takes_pair
        self.labels_json = orjson.Fragment(orjson.dumps(loaded.manifest.labels))
        self.pins = 0

    @property
    def extra_tokens(self) -> int:
        """What a member's row costs beyond its own places: the prefix is attended to but takes none."""
        return self.num_virtual_tokens // self.members - self.encoder.virtual_tokens


class Load(Protocol):
    """How a version gets into a slot."""

    def __call__(self, task_id: str, version: str, slot: int, *, rehearse: bool) -> Awaitable[Loaded]:
        """Fetch the version into the slot; with `rehearse` only if its golden examples come out right."""


class PromptCache:
    """Slots by version."""

    def __init__(
        self,
        load: Load,
        drop: Callable[[int], None],
        *,
        capacity_bytes: int,
        metrics: Metrics,
    ) -> None:
        """`drop(slot)` lets the device free the slot when it comes to it."""
        self._load, self._drop = load, drop
        self._capacity = capacity_bytes
        self._metrics = metrics
        self._slots: OrderedDict[str, Slot] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._indices = itertools.count()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._wanted: Counter[str] = (
            Counter()
        )  # waiters for a load: theirs must not be evicted before they wake
        self._failed: dict[str, tuple[Exception, float]] = {}
        metrics.watch(metrics.tier_bytes.labels("device"), lambda: self._bytes)
        metrics.watch(metrics.tier_entries.labels("device"), lambda: len(self._slots))

    def __contains__(self, version: str) -> bool:
        return version in self._slots

    def peek(self, version: str | None) -> Slot | None:
        """The version's slot, not pinned: to look at, not to use."""
        return self._slots.get(version) if version is not None else None

    def pin_loaded(self, version: str) -> Slot | None:
        """Pin the version if it is on the device: the hot path, with nothing to await."""
        slot = self._slots.get(version)
        if slot is not None:
            slot.pins += 1
            self._slots.move_to_end(version)
        return slot

    def __len__(self) -> int:
        return len(self._slots)

    def versions(self) -> list[str]:
        """What is on the device, least recently used first."""
        return list(self._slots)

    @property
    def nbytes(self) -> int:
        """Memory held, `SLOT_OVERHEAD` for each slot included."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Whether there is room for more without evicting anything soon."""
        return self._bytes < 0.8 * self._capacity

    async def pin(self, task_id: str, version: str, *, rehearse: bool = False) -> Slot:
        """Pin the version, loading it if need be. Raises what made the load fail.

        With `rehearse` it is made ready, not used: thousands that are published together must not drive out what is in
        use, so it goes first when room is needed, until somebody asks for it.
        """
        while True:
            slot = self._slots.get(version)
            if slot is not None:
                slot.pins += 1
                if not rehearse:
                    self._slots.move_to_end(version)
                return slot
            failure = self._failed.get(version)
            if failure is not None and time.monotonic() < failure[1]:
                raise failure[0].with_traceback(None)
            self._wanted[version] += 1
            try:
                # Shielded: one caller that leaves must not take the load from the others.
                await asyncio.shield(self._load_once(task_id, version, rehearse))
            finally:
                self._wanted[version] -= 1
                if not self._wanted[version]:
                    del self._wanted[version]

    def unpin(self, slot: Slot) -> None:
        """Let go of a pin."""
        slot.pins -= 1
        if self._bytes > self._capacity:
            self._make_room()

    @asynccontextmanager
    async def pinned(self, task_id: str, version: str, *, rehearse: bool = False) -> AsyncIterator[Slot]:
        """The version's slot, pinned for the length of the block."""
        slot = await self.pin(task_id, version, rehearse=rehearse)
        try:
            yield slot
        finally:
            self.unpin(slot)

    def forget_failure(self, version: str) -> None:
        """Let the next `pin` try again at once."""
        self._failed.pop(version, None)

    async def aclose(self) -> None:
        """End loads that are under way."""
        for task in self._loading.values():
            task.cancel()

    def _load_once(self, task_id: str, version: str, rehearse: bool) -> asyncio.Task[None]:
        task = self._loading.get(version)
        if task is None:
            task = self._loading[version] = asyncio.create_task(self._fetch(task_id, version, rehearse))
            task.add_done_callback(_retrieve)
        return task

    async def _fetch(self, task_id: str, version: str, rehearse: bool) -> None:
        began = time.perf_counter()
        index = next(self._indices)
        try:
            loaded = await self._load(task_id, version, index, rehearse=rehearse)
        except StoreUnavailable:
            # No word about the version: it may be had again the moment that the store is back.
            self._metrics.prompt_loads.labels("failed").inc()
            raise
        except Exception as error:
            self._metrics.prompt_loads.labels("failed").inc()
            if len(self._failed) > 1000:
                self._failed.clear()
            self._failed[version] = (error, time.monotonic() + _RETRY_FAILED_AFTER)
            raise
        finally:
            del self._loading[version]
        self._metrics.prompt_loads.labels("loaded").inc()
        self._metrics.prompt_load_time.observe(time.perf_counter() - began)
        self._failed.pop(version, None)
        slot = self._slots[version] = Slot(version, index, loaded)
        self._slots.move_to_end(version, last=not rehearse)
        self._bytes += slot.nbytes
        self._make_room(keep=version)

    def _make_room(self, keep: str | None = None) -> None:
        """Evict until the capacity holds. Pinned slots stay, so it may be passed while they are in use."""
        excess = self._bytes - self._capacity
        victims: list[str] = []
        for version, slot in self._slots.items():
            if excess <= 0:
                break
            if not (slot.pins or version == keep or version in self._wanted):
                victims.append(version)
                excess -= slot.nbytes
        for version in victims:
            slot = self._slots.pop(version)
            self._bytes -= slot.nbytes
            self._metrics.tier_evictions.labels("device").inc()
            self._drop(slot.index)  # nobody can pin it any more


def _retrieve(task: asyncio.Task[None]) -> None:
    # A load whose every waiter has gone: its error is counted and kept, asyncio need not complain.
    if not task.cancelled():
        task.exception()
