"""The store in a folder of a local file system: blobs named by digest, a catalogue in SQLite.

Owns: how blobs and catalogue work together, and keeping both off the event loop.
Must not know: the catalogue's tables, the blobs' paths, HTTP, torch.

A publish makes the blob durable before its row commits, so a crash at any point leaves at worst a blob that
nobody needs, which `collect` removes.
"""

import asyncio
import errno
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from prompt_store.arguments import check_ids, check_upload, clamp_limit, clean_actor
from prompt_store.blobs import BlobFolder
from prompt_store.catalogue import Catalogue
from prompt_store.catalogue_thread import CatalogueThread
from prompt_store.codec import version_of
from prompt_store.errors import CorruptVersion, StoreUnavailable
from prompt_store.names import check_alias, check_task_id
from prompt_store.schema import CATALOGUE
from prompt_store.store import (
    Changes,
    Collected,
    Durability,
    Event,
    Moved,
    PromptStore,
    Published,
    Receipt,
    Revision,
    Target,
    TaskPage,
    TaskRecord,
    VersionRecord,
    check_targets,
)
from prompt_store.unavailable import as_unavailable

T = TypeVar("T")

POLL_SECONDS: Final = 0.1  # for changes by other processes; our own wake a watcher at once
COLLECT_CHUNK: Final = 100  # blobs per transaction: a collection must not keep publishers waiting for long
# What says nothing about the file that it meets: this process is short of something, or a mount does not answer.
_NOT_THE_FILES: Final = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENODEV, errno.ENXIO),
}
_ON_DISK: Final = Durability("always")  # `blobs` and `schema` see to it


class FileStore(PromptStore):
    """`PromptStore` in the folder `root`, which is made on first use. Opens nothing until then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = BlobFolder(root)
        path = root / CATALOGUE
        # Two connections: a writer that waits for another process's lock must not keep readers waiting.
        self._reader = CatalogueThread(path, self._blobs, "prompt-store-read")
        self._writer = CatalogueThread(path, self._blobs, "prompt-store-write")
        self._files = ThreadPoolExecutor(4, thread_name_prefix="prompt-store-files")
        self._changed = asyncio.Event()
        self._closed = False

    async def publish(self, data: bytes, *, expect_version: str | None = None, actor: str = "") -> Published:
        """See `PromptStore.publish`."""
        prompt, version = await self._in_files(lambda: check_upload(data, expect_version))
        task_id = prompt.manifest.task_id
        if await self._is_stored(task_id, version, len(data)):
            return Published(await self.revision(), _ON_DISK, task_id, version, created=False)
        record = VersionRecord(
            version, len(data), time.time(), prompt.manifest.method, len(prompt.manifest.labels)
        )
        # Written twice only if a collection comes in between: the slow write first, while others may write too.
        await self._in_files(lambda: self._try_to_write(version, data))
        created, revision = await self._write(
            lambda catalogue: catalogue.add_version(
                task_id, record, clean_actor(actor), ensure_blob=lambda: self._ensure(version, data)
            )
        )
        return Published(revision, _ON_DISK, task_id, version, created)

    async def get(self, task_id: str, version: str) -> bytes:
        """See `PromptStore.get`."""
        check_ids(task_id, version)
        size = await self._read(lambda catalogue: catalogue.size_of(task_id, version))
        found = await self._in_files(lambda: self._intact(version, size))
        if isinstance(found, str):
            # It may have been deleted and collected since we asked: then this raises UnknownVersion instead.
            await self._read(lambda catalogue: catalogue.size_of(task_id, version))
            raise CorruptVersion(f"the bytes of a version of task {task_id} {found}: publish it anew")
        return found

    async def task(self, task_id: str) -> TaskRecord:
        """See `PromptStore.task`."""
        check_task_id(task_id)
        return await self._read(lambda catalogue: catalogue.task(task_id))

    async def list(self, *, after: str | None = None, limit: int = 100) -> TaskPage:
        """See `PromptStore.list`."""
        if after is not None:
            check_task_id(after)
        return await self._read(lambda catalogue: catalogue.page(after, clamp_limit(limit)))

    async def history(self, task_id: str, *, limit: int = 100) -> tuple[Event, ...]:
        """See `PromptStore.history`."""
        check_task_id(task_id)
        return await self._read(lambda catalogue: catalogue.history(task_id, clamp_limit(limit)))

    async def set_alias(
        self,
        task_id: str,
        alias: str,
        targets: Sequence[Target],
        *,
        expected_revision: int | None,
        actor: str = "",
    ) -> Moved:
        """See `PromptStore.set_alias`."""
        check_ids(task_id, *(target.version for target in targets))
        check_alias(alias)
        check_targets(targets)
        record, revision = await self._write(
            lambda catalogue: catalogue.set_alias(
                task_id, alias, targets, expected_revision, clean_actor(actor)
            )
        )
        return Moved(revision, _ON_DISK, record)

    async def delete_alias(
        self, task_id: str, alias: str, *, expected_revision: int | None, actor: str = ""
    ) -> Receipt:
        """See `PromptStore.delete_alias`."""
        check_task_id(task_id)
        check_alias(alias)
        revision = await self._write(
            lambda catalogue: catalogue.delete_alias(task_id, alias, expected_revision, clean_actor(actor))
        )
        return Receipt(revision, _ON_DISK)

    async def delete_version(self, task_id: str, version: str, *, actor: str = "") -> Receipt:
        """See `PromptStore.delete_version`."""
        check_ids(task_id, version)
        # Touched before, not after: in between a collection could find it unneeded and old.
        await self._in_files(lambda: self._blobs.touch(version))
        revision = await self._write(
            lambda catalogue: catalogue.delete_version(task_id, version, clean_actor(actor))
        )
        return Receipt(revision, _ON_DISK)

    async def delete_task(self, task_id: str, *, force: bool = False, actor: str = "") -> Receipt:
        """See `PromptStore.delete_task`."""
        check_task_id(task_id)
        versions = await self._read(lambda catalogue: catalogue.versions(task_id))
        await self._in_files(lambda: self._blobs.touch(*versions))
        revision = await self._write(
            lambda catalogue: catalogue.delete_task(task_id, clean_actor(actor), force=force)
        )
        return Receipt(revision, _ON_DISK)

    async def watch(self, after: Revision, *, timeout: float) -> Changes:  # noqa: ASYNC109 — a long poll: the end of the wait is an answer
        """See `PromptStore.watch`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            changed = self._changed  # taken before the look, so that nothing between look and wait is missed
            changes = await self._changes(after)
            remaining = deadline - loop.time()
            if changes.reset or changes.revision != after or remaining <= 0:
                return changes
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it can swallow a cancellation that meets its own time-out.
                async with asyncio.timeout(min(POLL_SECONDS, remaining)):
                    await changed.wait()

    async def revision(self) -> Revision:
        """See `PromptStore.revision`."""
        return (await self._changes(Revision("", 0))).revision

    async def collect(self, *, grace: float) -> Collected:
        """See `PromptStore.collect`."""
        await self.revision()  # makes the folders of a new store
        await self._write(
            lambda catalogue: catalogue.while_nobody_publishes(lambda: self._blobs.remove_leftovers(grace))
        )
        old = await self._in_files(lambda: [*self._blobs.older_than(grace)])
        freed: dict[str, int] = {}

        def remove(version: str) -> None:
            freed[version] = self._blobs.remove(version)

        for start in range(0, len(old), COLLECT_CHUNK):
            chunk = old[start : start + COLLECT_CHUNK]
            await self._write(partial(Catalogue.unless_needed, versions=chunk, remove=remove))
        return Collected(len(freed), sum(freed.values()))

    async def aclose(self) -> None:
        """See `PromptStore.aclose`."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        await self._reader.aclose()
        await self._writer.aclose()
        await asyncio.to_thread(self._files.shutdown)

    async def _changes(self, after: Revision) -> Changes:
        return await self._read(lambda catalogue: catalogue.changes(after))

    async def _read(self, job: Callable[[Catalogue], T]) -> T:
        self._check_open()
        return await self._reader.run(job)

    async def _write(self, job: Callable[[Catalogue], T]) -> T:
        self._check_open()
        try:
            return await self._writer.run(job)
        finally:
            self._wake()

    async def _in_files(self, job: Callable[[], T]) -> T:
        self._check_open()
        with as_unavailable():
            return await asyncio.get_running_loop().run_in_executor(self._files, job)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("this store was closed")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _is_stored(self, task_id: str, version: str, size: int) -> bool:
        if not await self._read(lambda catalogue: catalogue.has(task_id, version, size)):
            return False
        return isinstance(await self._in_files(lambda: self._intact(version, size)), bytes)

    def _try_to_write(self, version: str, data: bytes) -> None:
        with suppress(FileNotFoundError):  # a collection with a short grace may take the temporary file
            self._blobs.write(version, data)

    def _ensure(self, version: str, data: bytes) -> None:
        if self._blobs.size(version) != len(data):
            self._blobs.write(version, data)

    def _intact(self, version: str, size: int) -> bytes | str:
        """The blob's bytes, or what is wrong with them; OSError where it is not this blob alone."""
        try:
            if self._blobs.size(version) == size:  # asked first: a damaged blob may be too large to read
                data = self._blobs.read(version)
                if version_of(data) == version:
                    return data
        except OSError as error:
            if error.errno in _NOT_THE_FILES or not self._blobs.usable():
                raise
            # One file that cannot be read must not make the whole store look away: nobody would follow it any more.
            if error.errno != errno.ENOENT:
                return f"cannot be read ({os.strerror(error.errno or 0)})"
        return "are lost or damaged"
