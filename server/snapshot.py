"""The catalogue as it was last served, on the local disk: what a server starts with while the store is away.

Owns: when it is read and written, and what is done where that fails. Must not know: the file's form, HTTP, the device,
prompts' bytes. A snapshot that is damaged, or of another store or backbone, is put aside and said; one that cannot be
read just now is left as it is, and one that cannot be written stops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog

from server.catalogue import Catalogue, ServedTask
from server.disk_tier import FolderNotPrivate
from server.metrics import Metrics
from server.snapshot_file import Saved, SnapshotFile, is_damage
from server.view import View

__all__ = ["Saved", "Snapshot"]

T = TypeVar("T")

_PAUSE_SECONDS: Final = 1.0  # between two writes: what changes together is written together
_REFRESH_SECONDS: Final = 10.0  # how old the time in it may be while nothing changes
_READ_AGAIN_AFTER: Final = (0.2, 1.0)  # seconds: what hinders a read often passes
_FAILURES: Final = (sqlite3.Error, OSError, ValueError, KeyError, TypeError)


class Snapshot:
    """Writes the catalogue down as it changes, and reads it back."""

    def __init__(
        self, folder: Path, store_url: str, catalogue: Catalogue, view: View, metrics: Metrics
    ) -> None:
        self._folder, self._store = folder, _place(store_url)
        self._catalogue, self._view, self._metrics = catalogue, view, metrics
        self._file: SnapshotFile | None = None
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._losses = 0
        self._recalled = False
        self._refused = False
        self._anew = True  # nothing that is in the file may stay
        self._fails = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="promptmux-snapshot")
        self._log = structlog.get_logger("promptmux.snapshot")

    async def load(self, fingerprint: str) -> Saved | None:
        """The snapshot for this store and this backbone; None where there is none that can be used."""
        identity = hashlib.sha256(f"{self._store}\n{fingerprint}".encode()).hexdigest()
        self._file = file = SnapshotFile(self._folder, identity)
        saved = await self._read_patiently(file)
        self._recalled = saved is not None
        # What another server writes until this one takes over is not known then.
        self._anew = saved is None or not file.owned
        return saved

    def attend(self) -> None:
        """From now on note what changes; `follow` and `aclose` write it down."""
        self._catalogue.listen(self._note)

    async def follow(self) -> None:
        """Write changes down for as long as the task lives."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_SECONDS):
                    await self._wake.wait()
            await self.write()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def write(self) -> None:
        """Write down what changed since the last time; a disk that fails is said once, counted, and tried again."""
        file = self._file
        if file is None or self._view.source != "store":
            return  # nothing is known that the snapshot does not have
        try:
            if await self._on_thread(file.own):
                await self._write_changes(file)
            else:  # another server writes; when it has ended, all is new
                self._anew = True
                self._changed.clear()
                self._wake.clear()
        except _FAILURES as error:
            self._metrics.snapshot_failures.inc()
            if not self._fails:
                self._fails = True
                self._log.warning("snapshot_not_written", reason=_reason(error))
            if isinstance(error, sqlite3.Error) and is_damage(error):
                await self._on_thread(file.put_aside)
                self._anew = True
        else:
            self._fails = False

    async def aclose(self) -> None:
        """Write down what is left, and let another server write."""
        await self.write()
        if self._file is not None:
            await self._on_thread(self._file.leave)
        self._thread.shutdown(wait=False)

    def _note(self, task_id: str, before: ServedTask | None, after: ServedTask | None) -> None:
        if before != after:
            self._changed.add(task_id)
            self._wake.set()

    async def _write_changes(self, file: SnapshotFile) -> None:
        revision, as_of, losses = self._view.revision, time.time() - self._view.staleness, self._view.losses
        if revision is None:
            return
        anew = self._anew or self._losses != losses
        # Taken together, before the first await: the rows hold at least what the revision says.
        ids = {task.task_id for task in self._catalogue} if anew else self._changed
        rows = [(task_id, self._catalogue.get(task_id)) for task_id in ids]
        taken, self._changed = self._changed, set[str]()
        self._wake.clear()
        # A server that began with the snapshot and has seen no history lost since has its epoch, and a revision as
        # large: whatever else another left there is newer. Of any other server nobody can say, so it writes.
        yields = self._recalled and not losses
        try:
            written = await self._on_thread(
                lambda: file.write(rows, revision, as_of, anew=anew, yields=yields)
            )
        except BaseException:
            self._changed |= taken
            raise
        self._anew, self._losses = not written, losses

    async def _on_thread(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    async def _read_patiently(self, file: SnapshotFile) -> Saved | None:
        for pause in (*_READ_AGAIN_AFTER, None):
            try:
                return await self._on_thread(file.read)
            except FolderNotPrivate as error:
                self._log.warning("snapshot_refused", reason=_reason(error))
                self._file = None
                break
            except _FAILURES as error:
                if is_damage(error):
                    self._log.warning("snapshot_ignored", file=file.path.name, reason=_reason(error))
                    await self._on_thread(file.put_aside)
                    break
                if pause is None:
                    self._log.warning("snapshot_not_read", file=file.path.name, reason=_reason(error))
                else:
                    await asyncio.sleep(pause)
        return None


def _place(url: str) -> str:
    """What of a store's URL says where it is: another password or time-out leaves it the same store."""
    parts = urlsplit(url)
    prefix = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name == "prefix"])
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=prefix, fragment="").geturl()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "the disk failed"
    return str(error) if isinstance(error, ValueError | sqlite3.Error) else "it is not in the known form"
