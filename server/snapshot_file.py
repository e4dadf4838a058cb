"""The file of a catalogue's snapshot: SQLite, and a lock beside it.

Owns: its form, what of it may be believed, which process writes it. Must not know: when it is written, the event loop.
Blocking, used by one thread at a time.

Each row carries a digest of itself, for SQLite notices no flipped bit. Of several servers that share the file one
writes: what two have seen, mixed, would be what neither served. When it ends, another takes over.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from prompt_store import Revision, Target
from server.catalogue import Problem, ServedTask
from server.disk_tier import private_folder

_FORMAT: Final = 1
_BUSY_SECONDS: Final = 2.0
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS meta (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL, digest BLOB NOT NULL)",
    """CREATE TABLE IF NOT EXISTS tasks (
        task_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, body BLOB NOT NULL, digest BLOB NOT NULL
    ) WITHOUT ROWID""",
)
_UPSERT_TASK: Final = """INSERT INTO tasks VALUES (?, ?, ?, ?) ON CONFLICT (task_id) DO UPDATE
    SET revision = excluded.revision, body = excluded.body, digest = excluded.digest"""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a snapshot holds: the tasks, the revision that they have taken in, and how many seconds ago."""

    tasks: list[ServedTask]
    revision: Revision
    age: float


class SnapshotFile:
    """One file for each `identity`: two servers in one folder must not take turns overwriting."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity
        self.path = folder / f"catalogue-{identity[:16]}.sqlite3"
        self._lock: int | None = None  # held: this server is the one that writes
        self._left: bytes | None = None  # the meta row as this server read or wrote it last

    @property
    def owned(self) -> bool:
        """Whether this server is the one that writes, as of the last `own`."""
        return self._lock is not None

    def own(self) -> bool:
        """Whether this server is the one that writes: until it leaves, or the kernel sees that it has ended."""
        if self._lock is None:
            private_folder(self._folder)
            lock = os.open(self.path.with_suffix(".lock"), _CREATE, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException as error:
                os.close(lock)
                if isinstance(error, BlockingIOError):
                    return False
                raise
            self._lock = lock
        return True

    def leave(self) -> None:
        """Let another server write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> Saved | None:
        """What it holds; None where there is none yet. Raises what `is_damage` tells apart, and FolderNotPrivate."""
        private_folder(self._folder)
        with contextlib.suppress(OSError):  # what cannot be written may well be read
            self.own()
        if not self.path.exists():
            return None
        with contextlib.closing(self._connect()) as database:
            database.execute("BEGIN")  # all of it as it was at one moment: another server may be writing
            if database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise ValueError("SQLite finds it damaged")
            if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return None  # just begun
            found = database.execute("SELECT body, digest FROM meta").fetchone()
            if found is None:
                return None
            meta = _checked("meta", *found)
            if meta["format"] != _FORMAT or meta["identity"] != self._identity:
                raise ValueError("it is of another store, backbone or version of promptmux")
            rows = database.execute("SELECT task_id, body, digest FROM tasks")
            tasks = [_task(task_id, _checked(task_id, body, digest)) for task_id, body, digest in rows]
        self._left = found[0]
        revision = Revision(meta["epoch"], meta["revision"], meta.get("mark", ""))
        return Saved(tasks, revision, max(0.0, time.time() - meta["as_of"]))

    def write(
        self,
        rows: Iterable[tuple[str, ServedTask | None]],
        revision: Revision,
        as_of: float,
        *,
        anew: bool,
        yields: bool,
    ) -> bool:
        """Whether the file is now what this server serves; if not, the next write has to be anew: with all the rows.

        With `yields` what another server wrote stays, where that one had seen more of the store.
        """
        body = orjson.dumps(
            {
                "format": _FORMAT,
                "identity": self._identity,
                "epoch": revision.epoch,
                "revision": revision.number,
                "mark": revision.mark,
                "as_of": as_of,
            }
        )
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, _CREATE | os.O_EXCL, 0o600))
        with contextlib.closing(self._connect()) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")  # a lost last second is caught up with
            database.execute("BEGIN IMMEDIATE")  # a connection that is closed before its commit rolls back
            for statement in _TABLES:
                database.execute(statement)
            found = database.execute("SELECT body, digest FROM meta").fetchone()
            # Not as this server left it: another wrote meanwhile, or somebody removed it.
            if (found and found[0]) != self._left and (not anew or (yields and _is_newer(found, revision))):
                return False
            if anew:
                database.execute("DELETE FROM tasks")
            database.executemany(
                "DELETE FROM tasks WHERE task_id = ?", [(task_id,) for task_id, task in rows if task is None]
            )
            database.executemany(_UPSERT_TASK, (_row(task) for _, task in rows if task is not None))
            database.execute("INSERT OR REPLACE INTO meta VALUES (1, ?, ?)", (body, _digest("meta", body)))
            database.execute("COMMIT")
        self._left = body
        return True

    def _connect(self) -> sqlite3.Connection:
        """Open the file, which is neither made nor changed by that; where it may not be written, for reading."""
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
        )

    def put_aside(self) -> None:
        """Keep it under another name."""
        if self._lock is None:
            return  # not under the hands of the server that writes it
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                path = self.path.with_name(self.path.name + suffix)
                path.replace(path.with_name(f"{path.name}.ignored"))


def _is_newer(found: tuple[bytes, bytes] | None, revision: Revision) -> bool:
    if found is None:
        return False
    try:
        meta = _checked("meta", *found)
        return bool(meta["epoch"] != revision.epoch or meta["revision"] > revision.number)
    except (ValueError, KeyError, TypeError):
        return False


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
                name: [problem.versions, problem.code, problem.detail, problem.since, problem.revision]
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
            name: Problem(
                tuple(versions), *rest
            )  # the revision is not there in what an older promptmux wrote
            for name, (versions, *rest) in body["problems"].items()
        },
        body["missing_in_store"],
    )


def _checked(name: str, body: bytes, digest: bytes) -> Any:
    if _digest(name, body) != digest:
        raise ValueError("a row does not match its digest")
    return orjson.loads(body)


def _digest(name: str, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8, key=name.encode()).digest()


def is_damage(error: Exception) -> bool:
    """Whether it is the file's fault. A lock, a full disk, too many open files may be gone the next time."""
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_ERROR  # other tables than ours
    return isinstance(error, sqlite3.DatabaseError | ValueError | KeyError | TypeError)
