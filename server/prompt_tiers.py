"""Where a prompt comes from: host memory, then the local disk, then the store.

Owns: the order of the tiers, the check of every copy against its name each time it is used, and what happens to a copy
that fails it. Must not know: the device, what a prompt file means, HTTP. A tier that does not work is said once,
counted, and passed over; the store alone may refuse.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

import structlog

from prompt_store import CorruptVersion, PromptStore, StoreUnavailable, version_of
from server.disk_tier import DiskTier, FolderNotPrivate
from server.host_tier import Held, HostTier
from server.metrics import Metrics

T = TypeVar("T")
R = TypeVar("R")
Decode = Callable[
    [bytes], tuple[T, int]
]  # what a file means, and the memory that this takes; raises for a bad file

_INLINE_BYTES: Final = 128 * 1024  # hashed in less time than a hop to another thread takes
_FETCHES_AT_ONCE: Final = 16
_LONGEST_PAUSE: Final = 1.0  # seconds without a fetch after the store did not answer
_DISK_PATIENCE: Final = (
    5.0  # seconds for a read, after which the store is asked: the slowest disk needs less for a file
)
_COUNT_PATIENCE: Final = 30.0  # seconds that a start waits for the folder's count
_WAITING_BYTES: Final = (
    64 * 2**20
)  # for the disk to be written: on a disk that is slower than uploads they would pile up
_TOUCH_EVERY: Final = 300.0  # seconds


class PromptTiers(Generic[T]):
    """Versions, checked and decoded. `disk` is None where the store is a local disk itself."""

    def __init__(
        self,
        store: PromptStore,
        host: HostTier[T],
        disk: DiskTier | None,
        decode: Decode[T],
        metrics: Metrics,
    ) -> None:
        self.host, self.disk = host, disk
        self._store, self._decode, self._metrics = store, decode, metrics
        self._fetches: dict[str, asyncio.Task[T]] = {}
        self._gate = asyncio.Semaphore(_FETCHES_AT_ONCE)
        self._pause: tuple[float, StoreUnavailable] | None = None
        self._unanswered = ""  # the version for which the store did not answer last
        self._writes: set[asyncio.Task[object]] = set()
        self._waiting = 0  # bytes of them
        # What writes has a thread of its own: requests wait for reads only.
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="promptmux-disk-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="promptmux-disk-write")
        self._hanging: list[Future[object]] = []  # reads that nobody waits for any longer
        self._elsewhere: Callable[[], Iterable[str]] = tuple
        self._touching: asyncio.Task[None] | None = None
        self._failing: set[str] = set()  # what the disk does not do just now; said once each
        self._log = structlog.get_logger("promptmux.tiers")
        metrics.watch(metrics.tier_bytes.labels("host"), lambda: host.nbytes)
        metrics.watch(metrics.tier_entries.labels("host"), lambda: len(host))
        if disk is not None:
            metrics.watch(metrics.tier_bytes.labels("disk"), lambda: disk.nbytes)
            metrics.watch(metrics.tier_entries.labels("disk"), lambda: len(disk))

    async def open(self) -> None:
        """See what is on the disk from earlier; do without it where others could have put it there."""
        disk = self.disk
        if disk is None:
            return

        def count() -> bool:
            try:
                disk.count()
            except FolderNotPrivate as error:
                self._log.warning("disk_tier_refused", reason=error.strerror)
                return False
            return True

        if await self._on_disk("count", count, True, _COUNT_PATIENCE):
            self._touching = asyncio.create_task(self._touch(disk))
        else:
            self.disk = None

    def keep_on_disk(self, versions: Callable[[], Iterable[str]]) -> None:
        """`versions` gives what is in use without being asked for here: on the device, least recently used first."""
        self._elsewhere = versions

    async def get(self, task_id: str, version: str) -> T:
        """A version, its bytes checked against its name. Raises what the store and `decode` raise."""
        held = self.host.get(version)
        # What was decoded from the bytes in memory stands for as long as these are right; most are hashed right here.
        if (
            held is not None
            and held.decoded is not None
            and len(held.data) <= _INLINE_BYTES
            and version_of(held.data) == version
        ):
            self._metrics.tier_hits.labels("host").inc()
            return held.decoded
        # One fetch for all: shielded, so that one caller that leaves does not take it from the others.
        return await asyncio.shield(self._fetch_once(task_id, version))

    def put(self, version: str, data: bytes) -> None:
        """Take in bytes that are known to be right: those of an upload, say."""
        self._hold(version, Held(data))
        self._write_soon(version, data)

    async def prefetch(self, task_id: str, version: str) -> bool:
        """Have the bytes on the disk before anybody asks for them; False where the disk does not do it just now.

        Raises what the store raises.
        """
        disk = self.disk
        if disk is None:
            return False
        nobody_knows: bool | None = None
        there = await self._on_disk("read", lambda: disk.has(version), nobody_knows)
        if there is None:
            return False
        return there or await self._write(disk, version, await self._from_store(task_id, version))

    @property
    def wants_prefetch(self) -> bool:
        """Whether there is a disk tier with room. Whether it works by now, only the next try can tell."""
        return self.disk is not None and self.disk.has_room

    async def aclose(self) -> None:
        """End what is under way."""
        for task in [*self._fetches.values(), *self._writes]:
            task.cancel()
        if self._touching is not None:
            self._touching.cancel()
        for threads in (self._readers, self._writer):
            threads.shutdown(wait=False, cancel_futures=True)

    def _fetch_once(self, task_id: str, version: str) -> asyncio.Task[T]:
        task = self._fetches.get(version)
        if task is None:
            task = self._fetches[version] = asyncio.create_task(self._fetch(task_id, version))
            task.add_done_callback(lambda done: self._fetched(version, done))
        return task

    def _fetched(self, version: str, task: asyncio.Task[T]) -> None:
        del self._fetches[version]
        if not task.cancelled():
            task.exception()  # where every waiter has gone, asyncio need not complain

    async def _fetch(self, task_id: str, version: str) -> T:
        found = await self._from_host(version)
        if found is None:
            found = await self._from_disk(version)
        if found is not None:
            return found
        data = await self._from_store(task_id, version)
        decoded, size = await asyncio.to_thread(self._decode, data)
        self._hold(version, Held(data, decoded, size))
        self._write_soon(version, data)
        return decoded

    async def _from_host(self, version: str) -> T | None:
        held = self.host.get(version)
        if held is None:
            self._metrics.tier_misses.labels("host").inc()
            return None
        if await asyncio.to_thread(version_of, held.data) != version:
            self._corrupt("host", version)
            self.host.drop(version)
            return None
        self._metrics.tier_hits.labels("host").inc()
        if held.decoded is not None:
            return held.decoded
        decoded, size = await asyncio.to_thread(self._decode, held.data)
        self._hold(version, Held(held.data, decoded, size))
        return decoded

    async def _from_disk(self, version: str) -> T | None:
        disk = self.disk
        if disk is None:
            return None

        def read() -> tuple[bytes, T, int] | bool:
            """In one go, for a hop to another thread takes longer than any of it; whether there was a file at all."""
            data = disk.read(version)
            if data is None or version_of(data) != version:
                return data is not None
            return data, *self._decode(data)

        nothing: tuple[bytes, T, int] | bool = False
        found = await self._on_disk("read", read, nothing)
        if isinstance(found, tuple):
            self._metrics.tier_hits.labels("disk").inc()
            self._hold(version, Held(*found))
            return found[1]
        if found:
            self._corrupt("disk", version)
            # Nobody waits: what is fetched now is written after it, by the same thread.
            self._in_background(self._on_disk("drop", lambda: disk.drop(version), None))
        else:
            self._metrics.tier_misses.labels("disk").inc()
        return None

    async def _from_store(self, task_id: str, version: str) -> bytes:
        async with self._gate:
            # After the wait for the gate: where one fetch met a store that is away, those behind it need not find out.
            if self._pause is not None and time.monotonic() < self._pause[0]:
                raise StoreUnavailable(str(self._pause[1]), retry_after=self._pause[1].retry_after)
            try:
                data = await self._store.get(task_id, version)  # checked there: its contract says so
            except Exception as error:
                self._metrics.tier_misses.labels("store").inc()
                if isinstance(error, CorruptVersion):
                    self._metrics.tier_corrupt.labels("store").inc()
                if isinstance(error, StoreUnavailable):
                    # One version alone may be too large for the store's timeout: others need not wait for that.
                    if self._unanswered not in ("", version):
                        self._pause = (time.monotonic() + min(_LONGEST_PAUSE, error.retry_after), error)
                    self._unanswered = version
                raise
        self._pause, self._unanswered = None, ""
        self._metrics.tier_hits.labels("store").inc()
        return data

    def _hold(self, version: str, held: Held[T]) -> None:
        self._metrics.tier_evictions.labels("host").inc(self.host.put(version, held))

    def _corrupt(self, tier: str, version: str) -> None:
        self._metrics.tier_corrupt.labels(tier).inc()
        self._log.warning("tier_copy_corrupt", tier=tier, version=version)

    def _write_soon(self, version: str, data: bytes) -> None:
        if self.disk is None:
            return
        if self._waiting and self._waiting + len(data) > _WAITING_BYTES:
            self._fails("write", "it is too slow for what is to be written")
        else:
            self._waiting += len(data)
            self._in_background(self._write(self.disk, version, data), len(data))

    def _in_background(self, work: Coroutine[Any, Any, object], size: int = 0) -> None:
        def ended(task: asyncio.Task[object]) -> None:
            self._writes.discard(task)
            self._waiting -= size

        task = asyncio.create_task(work)
        self._writes.add(task)
        task.add_done_callback(ended)

    async def _write(self, disk: DiskTier, version: str, data: bytes) -> bool:
        failed: int | None = None
        evicted = await self._on_disk("write", lambda: disk.write(version, data), failed)
        self._metrics.tier_evictions.labels("disk").inc(evicted or 0)
        return evicted is not None

    async def _touch(self, disk: DiskTier) -> None:
        """Say to the disk what is in use: files that are not read because they are in memory must not look oldest."""
        while True:
            await asyncio.sleep(_TOUCH_EVERY)
            used = [*self.host.versions(), *self._elsewhere()]
            await self._on_disk("touch", lambda used=used: disk.touch(used), None)  # type: ignore[misc]

    async def _on_disk(
        self, what: str, job: Callable[[], R], otherwise: R, patience: float | None = None
    ) -> R:
        """What `job` gives, off the event loop; `otherwise` where the disk fails, or does not answer in time."""
        reads = what == "read"
        if reads:
            patience = _DISK_PATIENCE
            self._hanging = [call for call in self._hanging if not call.done()]
            if self._hanging:
                return otherwise
        call = (self._readers if reads else self._writer).submit(job)
        try:
            async with asyncio.timeout(patience):
                result = await asyncio.wrap_future(call)
        except OSError as error:  # TimeoutError is one
            if reads and not call.cancel() and not call.done():
                self._hanging.append(call)  # type: ignore[arg-type]  # a Future of whatever
            self._fails(what, error.strerror or "it does not answer")
            return otherwise
        self._failing.discard(what)
        return result

    def _fails(self, what: str, reason: str) -> None:
        self._metrics.tier_errors.labels("disk").inc()
        if what not in self._failing:
            self._failing.add(what)
            self._log.warning("disk_tier_fails", what=what, reason=reason)
