"""Where a prompt's bytes come from: host memory, then the local disk, then the store.

Owns: the order of the tiers, the check of every copy against its name each time it is used, and what happens to a copy
that fails it. Must not know: the device, what a prompt file means, HTTP. A tier that does not work is said once,
counted, and passed over; the store alone may refuse.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog

from prompt_store import PromptStore, StoreUnavailable, version_of
from server.disk_tier import DiskTier
from server.host_tier import HostTier
from server.metrics import Metrics

T = TypeVar("T")

_INLINE_BYTES: Final = 128 * 1024  # hashed in less time than a hop to another thread takes
_FETCHES_AT_ONCE: Final = 16
_LONGEST_PAUSE: Final = 1.0  # seconds without a fetch after the store did not answer


class PromptTiers:
    """The bytes of versions. `disk` is None where the store is a local disk itself."""

    def __init__(self, store: PromptStore, host: HostTier, disk: DiskTier | None, metrics: Metrics) -> None:
        self._store, self.host, self.disk, self._metrics = store, host, disk, metrics
        self._fetches: dict[str, asyncio.Task[bytes]] = {}
        self._gate = asyncio.Semaphore(_FETCHES_AT_ONCE)
        self._pause: tuple[float, StoreUnavailable] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="promptmux-disk")
        self._failing: set[str] = set()  # what the disk does not do just now; said once each
        self._log = structlog.get_logger("promptmux.tiers")
        metrics.watch(metrics.tier_bytes.labels("host"), lambda: host.nbytes)
        metrics.watch(metrics.tier_entries.labels("host"), lambda: len(host))
        if disk is not None:
            metrics.watch(metrics.tier_bytes.labels("disk"), lambda: disk.nbytes)
            metrics.watch(metrics.tier_entries.labels("disk"), lambda: len(disk))

    async def open(self) -> None:
        """See what is on the disk from earlier."""
        if self.disk is not None:
            await self._on_disk("count", self.disk.count, None)

    async def get(self, task_id: str, version: str) -> bytes:
        """The bytes of a version, checked against its name. Raises what the store raises."""
        data = self.host.get(version)
        if await self._good("host", version, data):
            assert data is not None
            return data
        # One fetch for all: shielded, so that one caller that leaves does not take it from the others.
        return await asyncio.shield(self._fetch_once(task_id, version))

    def put(self, version: str, data: bytes) -> None:
        """Take in bytes that are known to be right: those of an upload, say."""
        self._metrics.tier_evictions.labels("host").inc(self.host.put(version, data))
        if self.disk is not None:
            self._write_soon(self.disk, version, data)

    async def prefetch(self, task_id: str, version: str) -> None:
        """Have the bytes on the disk before anybody asks for them. Raises what the store raises."""
        disk = self.disk
        if disk is None or await self._on_disk("read", lambda: disk.has(version), True):
            return
        await self._write(disk, version, await self._from_store(task_id, version))

    @property
    def wants_prefetch(self) -> bool:
        """Whether there is a disk tier that works, with room."""
        return self.disk is not None and not self._failing and self.disk.has_room

    async def aclose(self) -> None:
        """End what is under way."""
        for task in [*self._fetches.values(), *self._writes]:
            task.cancel()
        self._threads.shutdown(wait=False)

    def _fetch_once(self, task_id: str, version: str) -> asyncio.Task[bytes]:
        task = self._fetches.get(version)
        if task is None:
            task = self._fetches[version] = asyncio.create_task(self._fetch(task_id, version))
            task.add_done_callback(lambda done: self._fetched(version, done))
        return task

    def _fetched(self, version: str, task: asyncio.Task[bytes]) -> None:
        del self._fetches[version]
        if not task.cancelled():
            task.exception()  # where every waiter has gone, asyncio need not complain

    async def _fetch(self, task_id: str, version: str) -> bytes:
        if (disk := self.disk) is not None:
            data = await self._on_disk("read", lambda: disk.read(version), None)
            if await self._good("disk", version, data):
                assert data is not None
                self._metrics.tier_evictions.labels("host").inc(self.host.put(version, data))
                return data
        data = await self._from_store(task_id, version)
        self.put(version, data)
        return data

    async def _from_store(self, task_id: str, version: str) -> bytes:
        async with self._gate:
            # After the wait for the gate: where one fetch met a store that is away, those behind it need not find out.
            if self._pause is not None and time.monotonic() < self._pause[0]:
                raise StoreUnavailable(str(self._pause[1]), retry_after=self._pause[1].retry_after)
            try:
                data = await self._store.get(task_id, version)
            except StoreUnavailable as error:
                self._metrics.tier_misses.labels("store").inc()
                self._pause = (time.monotonic() + min(_LONGEST_PAUSE, error.retry_after), error)
                raise
            except Exception:
                self._metrics.tier_misses.labels("store").inc()
                raise
        self._pause = None
        self._metrics.tier_hits.labels("store").inc()  # checked by the store: its contract says so
        return data

    async def _good(self, tier: str, version: str, data: bytes | None) -> bool:
        """Whether a tier had the bytes and they are right; wrong ones are dropped."""
        if data is None:
            self._metrics.tier_misses.labels(tier).inc()
            return False
        inline = len(data) <= _INLINE_BYTES
        if (version_of(data) if inline else await asyncio.to_thread(version_of, data)) == version:
            self._metrics.tier_hits.labels(tier).inc()
            return True
        self._metrics.tier_corrupt.labels(tier).inc()
        self._log.warning("tier_copy_corrupt", tier=tier, version=version)
        if tier == "host":
            self.host.drop(version)
        elif (disk := self.disk) is not None:
            await self._on_disk("drop", lambda: disk.drop(version), None)
        return False

    def _write_soon(self, disk: DiskTier, version: str, data: bytes) -> None:
        task = asyncio.create_task(self._write(disk, version, data))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, disk: DiskTier, version: str, data: bytes) -> None:
        self._metrics.tier_evictions.labels("disk").inc(
            await self._on_disk("write", lambda: disk.write(version, data), 0)
        )

    async def _on_disk(self, what: str, job: Callable[[], T], otherwise: T) -> T:
        """What `job` gives, off the event loop; `otherwise` where the disk fails."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._threads, job)
        except OSError as error:
            self._metrics.tier_errors.labels("disk").inc()
            if what not in self._failing:
                self._failing.add(what)
                self._log.warning("disk_tier_fails", what=what, reason=error.strerror or "unknown")
            return otherwise
        self._failing.discard(what)
        return result
