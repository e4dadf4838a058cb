"""The catalogue as it was last served, on the local disk: what a server starts with while the store is away.

Owns: the SQLite file, what of it may be believed, and when it is written. Must not know: HTTP, the device, prompts'
bytes. A snapshot that is damaged, or of another store or backbone, is put aside and said; one that cannot be written
stops nothing.

Each row carries a digest of itself, for SQLite notices no flipped bit. Several servers may share the file: a row is
never replaced by an older one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
import structlog

from prompt_store import Revision, Target
from server.catalogue import Catalogue, Problem, ServedTask
from server.metrics import Metrics
from server.view import View

T = TypeVar("T")

_FORMAT: Final = 1
_PAUSE_SECONDS: Final = 1.0  # between two writes: what changes together is written together
_REFRESH_SECONDS: Final = 10.0  # how old the time in it may be while nothing changes
_BUSY_SECONDS: Final = 5.0
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS meta (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL, digest BLOB NOT NULL)",
    """CREATE TABLE IF NOT EXISTS tasks (
        task_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, body BLOB NOT NULL, digest BLOB NOT NULL
    ) WITHOUT ROWID""",
)
_UPSERT_TASK: Final = """INSERT INTO tasks VALUES (?, ?, ?, ?) ON CONFLICT (task_id) DO UPDATE
    SET revision = excluded.revision, body = excluded.body, digest = excluded.digest
    WHERE excluded.revision >= tasks.revision"""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a snapshot holds: the tasks, the revision that they have taken in, and how many seconds ago."""

    tasks: list[ServedTask]
    revision: Revision
    age: float


class Snapshot:
    """Writes the catalogue down as it changes, and reads it back."""

    def __init__(
        self, folder: Path, store_url: str, catalogue: Catalogue, view: View, metrics: Metrics
    ) -> None:
        self._folder, self._store = folder, _place(store_url)
        self._catalogue, self._view, self._metrics = catalogue, view, metrics
        self._identity = ""
        self._path = folder
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._losses = 0
        self._anew = True  # nothing that is in the file may stay
        self._fails = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="promptmux-snapshot")
        self._log = structlog.get_logger("promptmux.snapshot")

    async def load(self, fingerprint: str) -> Saved | None:
        """The snapshot for this store and this backbone; None where there is none that can be used."""
        self._identity = hashlib.sha256(f"{self._store}\n{fingerprint}".encode()).hexdigest()
        # A file for each store and backbone: two servers in one folder must not take turns overwriting.
        self._path = self._folder / f"catalogue-{self._identity[:16]}.sqlite3"
        try:
            saved = await self._on_thread(self._read)
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            self._log.warning("snapshot_ignored", file=self._path.name, reason=_reason(error))
            await self._on_thread(self._put_aside)
            saved = None
        self._anew = saved is None
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
        revision, as_of = self._view.revision, time.time() - self._view.staleness
        if revision is None or self._view.source != "store":
            return  # nothing is known that the snapshot does not have
        anew = self._anew or self._losses != self._view.losses
        # Taken together, before the first await: the rows hold at least what the revision says.
        ids = {task.task_id for task in self._catalogue} if anew else self._changed
        rows = [(task_id, self._catalogue.get(task_id)) for task_id in ids]
        taken, losses, self._changed = self._changed, self._view.losses, set[str]()
        self._wake.clear()
        try:
            await self._on_thread(lambda: self._write(rows, revision, as_of, anew=anew))
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            self._changed |= taken
            self._metrics.snapshot_failures.inc()
            if not self._fails:
                self._fails = True
                self._log.warning("snapshot_not_written", reason=_reason(error))
            return
        self._fails, self._anew, self._losses = False, False, losses

    async def aclose(self) -> None:
        """Write down what is left."""
        if self._identity:
            await self.write()
        self._thread.shutdown(wait=False)

    def _note(self, task_id: str, before: ServedTask | None, after: ServedTask | None) -> None:
        if before != after:
            self._changed.add(task_id)
            self._wake.set()

    async def _on_thread(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _read(self) -> Saved | None:
        if not self._path.exists():
            return None
        with contextlib.closing(self._open()) as database:
            if database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise ValueError("SQLite finds it damaged")
            found = database.execute("SELECT body, digest FROM meta").fetchone()
            if found is None:
                return None
            meta = _checked("meta", *found)
            if meta["format"] != _FORMAT or meta["identity"] != self._identity:
                raise ValueError("it is of another store, backbone or version of promptmux")
            rows = database.execute("SELECT task_id, body, digest FROM tasks")
            tasks = [_task(task_id, _checked(task_id, body, digest)) for task_id, body, digest in rows]
        revision = Revision(meta["epoch"], meta["revision"])
        return Saved(tasks, revision, max(0.0, time.time() - meta["as_of"]))

    def _write(
        self, rows: Iterable[tuple[str, ServedTask | None]], revision: Revision, as_of: float, *, anew: bool
    ) -> None:
        meta = {
            "format": _FORMAT,
            "identity": self._identity,
            "epoch": revision.epoch,
            "revision": revision.number,
            "as_of": as_of,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(self._open()) as database:
            database.execute("BEGIN IMMEDIATE")  # a connection that is closed before its commit rolls back
            for statement in _TABLES:
                database.execute(statement)
            if anew:
                database.execute("DELETE FROM tasks")
            database.executemany(
                "DELETE FROM tasks WHERE task_id = ?", [(task_id,) for task_id, task in rows if task is None]
            )
            database.executemany(_UPSERT_TASK, (_row(task) for _, task in rows if task is not None))
            found = database.execute("SELECT body FROM meta").fetchone()
            before: dict[str, Any] = orjson.loads(found[0]) if found and not anew else meta
            # Of two servers that write here, the one that lags must not put the other's revision back.
            if before["epoch"] != revision.epoch or before["revision"] <= revision.number:
                body = orjson.dumps(meta)
                database.execute(
                    "INSERT OR REPLACE INTO meta VALUES (1, ?, ?)", (body, _digest("meta", body))
                )
            database.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")  # a lost last second is caught up with
        except BaseException:
            database.close()
            raise
        return database

    def _put_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                path = self._path.with_name(self._path.name + suffix)
                path.replace(path.with_name(f"{path.name}.ignored"))


def _row(task: ServedTask) -> tuple[str, int, bytes, bytes]:
    body = orjson.dumps(
        {
            "revision": task.revision,
            "aliases": {
                name: [[target.version, target.weight] for target in targets]
                for name, targets in task.aliases.items()
            },
            "versions": list(task.versions),
            "created": task.created,
            "problems": {
                name: [problem.versions, problem.code, problem.detail, problem.since]
                for name, problem in task.problems.items()
            },
            "missing_in_store": task.missing_in_store,
        }
    )
    return task.task_id, task.revision, body, _digest(task.task_id, body)


def _task(task_id: str, body: dict[str, Any]) -> ServedTask:
    names = {version: version for version in body["versions"]}  # one string for each digest
    return ServedTask(
        task_id,
        body["revision"],
        {
            name: tuple(Target(names.get(version, version), weight) for version, weight in targets)
            for name, targets in body["aliases"].items()
        },
        tuple(names),
        body["created"],
        {
            name: Problem(tuple(versions), code, detail, since)
            for name, (versions, code, detail, since) in body["problems"].items()
        },
        body["missing_in_store"],
    )


def _checked(name: str, body: bytes, digest: bytes) -> Any:
    if _digest(name, body) != digest:
        raise ValueError("a row does not match its digest")
    return orjson.loads(body)


def _digest(name: str, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8, key=name.encode()).digest()


def _place(url: str) -> str:
    """What of a store's URL says where it is: another password or time-out leaves it the same store."""
    parts = urlsplit(url)
    prefix = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name == "prefix"])
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=prefix, fragment="").geturl()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "the disk failed"
    return str(error) if isinstance(error, ValueError | sqlite3.Error) else "it is not in the known form"
