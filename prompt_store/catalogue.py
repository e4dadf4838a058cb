"""The catalogue of a file store: which tasks, versions, aliases and events there are.

Owns: the transactions and their rules. Must not know: blobs, event loops.
Blocking, and for one thread at a time; errors are PromptStoreError and sqlite3.Error.

Every write is one BEGIN IMMEDIATE transaction, so that what it read is still so when it commits.
"""

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import JsonValue

from prompt_store.catalogue_rows import has_version, tasks_between
from prompt_store.errors import (
    PromptStoreError,
    RevisionConflict,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
)
from prompt_store.schema import open_database
from prompt_store.store import (
    Action,
    AliasRecord,
    Changes,
    Event,
    Revision,
    Target,
    TaskPage,
    TaskRecord,
    VersionRecord,
)

HISTORY_KEPT: Final = 1000


class Catalogue:
    """One connection to the catalogue at `path`, created with its schema when it is not there."""

    def __init__(self, path: Path) -> None:
        self._db = open_database(path)
        try:
            found = os.stat(path)
        except BaseException:
            self._db.close()
            raise
        # A store that was restored from a backup and written on goes by the same numbers: it is another file. Not its
        # device, too: that number may be another one after a restart of the machine, and snapshots keep marks.
        self._mark = str(found.st_ino)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # ── reads ────────────────────────────────────────────────────────────

    def revision(self) -> Revision:
        """Where the history stands."""
        epoch, number = self._db.execute("SELECT epoch, revision FROM store").fetchone()
        return Revision(epoch, number, self._mark)

    def task(self, task_id: str) -> TaskRecord:
        """One task; UnknownTask."""
        with self._transaction("BEGIN"):
            self._require_task(task_id)
            return tasks_between(self._db, task_id, task_id)[task_id]()

    def page(self, after: str | None, limit: int) -> TaskPage:
        """`limit` tasks after an id, in three queries however many they are."""
        with self._transaction("BEGIN"):
            ids = self._db.execute(
                "SELECT task_id FROM tasks WHERE NOT deleted AND task_id > ? ORDER BY task_id LIMIT ?",
                (after or "", limit + 1),
            ).fetchall()
            shown = ids[:limit]
            readings = tasks_between(self._db, shown[0][0], shown[-1][0]) if shown else {}
            now = self.revision()
        tasks, unreadable = [], []
        for task_id, read in readings.items():
            try:
                tasks.append(read())
            except PromptStoreError:  # one damaged record must not hide all others
                unreadable.append(task_id)
        return TaskPage(tuple(tasks), shown[-1][0] if len(ids) > limit else None, now, tuple(unreadable))

    def history(self, task_id: str, limit: int) -> tuple[Event, ...]:
        """The latest events, newest first; UnknownTask when there never was such a task."""
        rows = self._db.execute(
            "SELECT revision, at, actor, action, detail FROM events"
            " WHERE task_id = ? ORDER BY revision DESC LIMIT ?",
            (task_id, limit),
        ).fetchall()
        if not rows:
            raise UnknownTask(f"unknown task {task_id}")
        return tuple(
            Event(number, at, actor, action, json.loads(detail)) for number, at, actor, action, detail in rows
        )

    def size_of(self, task_id: str, version: str) -> int:
        """The size of a version's bytes; UnknownTask, UnknownVersion."""
        with self._transaction("BEGIN"):
            self._require_task(task_id)
            row = self._db.execute(
                "SELECT size FROM versions WHERE task_id = ? AND version = ?", (task_id, version)
            ).fetchone()
        if row is None:
            raise UnknownVersion(f"task {task_id} has no such version")
        return row[0] if type(row[0]) is int else -1  # -1: damaged, and the size of no file

    def changes(self, after: Revision) -> Changes:
        """What changed since `after`."""
        with self._transaction("BEGIN"):
            now = self.revision()
            reset = now.epoch != after.epoch or now.number < after.number
            reset = reset or after.mark not in ("", now.mark)
            if reset or now == after:
                return Changes(now, (), reset)
            rows = self._db.execute(
                "SELECT task_id FROM tasks WHERE revision > ? ORDER BY revision", (after.number,)
            ).fetchall()
            return Changes(now, tuple(row[0] for row in rows), reset=False)

    def has(self, task_id: str, version: str, size: int) -> bool:
        """Whether the task has this version with a record that is whole; `size` is that of its bytes."""
        return has_version(self._db, task_id, version, size)

    def versions(self, task_id: str) -> tuple[str, ...]:
        """The names of a task's versions; UnknownTask."""
        with self._transaction("BEGIN"):
            self._require_task(task_id)
            rows = self._db.execute("SELECT version FROM versions WHERE task_id = ?", (task_id,))
            return tuple(row[0] for row in rows)

    # ── writes ───────────────────────────────────────────────────────────

    def add_version(
        self, task_id: str, version: VersionRecord, actor: str, *, ensure_blob: Callable[[], None]
    ) -> tuple[bool, Revision]:
        """Add a version, in place of a damaged record of it: whether it is new, and the revision.

        `ensure_blob` is called inside the transaction, where no collection can take the blob away any more.
        """
        with self._transaction("BEGIN IMMEDIATE"):
            ensure_blob()
            if self.has(task_id, version.version, version.size):
                return False, self.revision()
            number = self._change(
                task_id, actor, "publish", {"version": version.version, "method": version.method}
            )
            self._db.execute(
                "INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    task_id,
                    version.version,
                    number,
                    version.size,
                    version.published_at,
                    version.method,
                    version.labels,
                ),
            )
            return True, self.revision()

    def set_alias(
        self, task_id: str, alias: str, targets: Sequence[Target], expected: int | None, actor: str
    ) -> tuple[AliasRecord, Revision]:
        """Compare and set; UnknownTask, UnknownVersion, RevisionConflict."""
        pairs: list[JsonValue] = [[target.version, target.weight] for target in targets]
        with self._transaction("BEGIN IMMEDIATE"):
            self._require_task(task_id)
            self._compare(task_id, alias, expected)
            for target in targets:
                if not self._has_version(task_id, target.version):
                    raise UnknownVersion(f"task {task_id} has no such version")
            number = self._change(task_id, actor, "alias", {"alias": alias, "targets": pairs})
            self._db.execute(
                "INSERT OR REPLACE INTO aliases VALUES (?, ?, ?, ?)",
                (task_id, alias, json.dumps(pairs), number),
            )
            return AliasRecord(alias, tuple(targets), number), self.revision()

    def delete_alias(self, task_id: str, alias: str, expected: int | None, actor: str) -> Revision:
        """Compare and delete; UnknownTask, UnknownAlias, RevisionConflict."""
        with self._transaction("BEGIN IMMEDIATE"):
            self._require_task(task_id)
            if self._compare(task_id, alias, expected) == 0:
                raise UnknownAlias(f"task {task_id} has no alias {alias}")
            self._change(task_id, actor, "delete_alias", {"alias": alias})
            self._db.execute("DELETE FROM aliases WHERE task_id = ? AND name = ?", (task_id, alias))
            return self.revision()

    def delete_version(self, task_id: str, version: str, actor: str) -> Revision:
        """Remove a version; UnknownTask, UnknownVersion, VersionInUse."""
        with self._transaction("BEGIN IMMEDIATE"):
            self._require_task(task_id)
            for name, targets in self._db.execute(
                "SELECT name, targets FROM aliases WHERE task_id = ?", (task_id,)
            ).fetchall():
                # 64 digits of hex, which stand in an alias's JSON, damaged or not, only where it leads to that version.
                if f'"{version}"' in str(targets):
                    raise VersionInUse(
                        f"the alias {name} of task {task_id} leads to this version: move it first"
                    )
            if not self._has_version(task_id, version):
                raise UnknownVersion(f"task {task_id} has no such version")
            self._change(task_id, actor, "delete_version", {"version": version})
            self._db.execute("DELETE FROM versions WHERE task_id = ? AND version = ?", (task_id, version))
            return self.revision()

    def delete_task(self, task_id: str, actor: str, *, force: bool) -> Revision:
        """Leave a tombstone; UnknownTask, VersionInUse."""
        with self._transaction("BEGIN IMMEDIATE"):
            self._require_task(task_id)
            first = "SELECT min(name) FROM aliases WHERE task_id = ?"
            if not force and (alias := self._db.execute(first, (task_id,)).fetchone()[0]) is not None:
                raise VersionInUse(f"task {task_id} has aliases, {alias} for one: delete them, or force")
            self._change(task_id, actor, "delete_task", {}, deleted=True)
            self._db.execute("DELETE FROM aliases WHERE task_id = ?", (task_id,))
            self._db.execute("DELETE FROM versions WHERE task_id = ?", (task_id,))
            return self.revision()

    def unless_needed(self, versions: Collection[str], remove: Callable[[str], None]) -> None:
        """Call `remove` for each version that no task has, while no process can add one."""
        with self._transaction("BEGIN IMMEDIATE"):
            for version in versions:
                if not self._db.execute("SELECT 1 FROM versions WHERE version = ?", (version,)).fetchone():
                    remove(version)

    def while_nobody_publishes(self, job: Callable[[], None]) -> None:
        """Call `job` while no process can be in `add_version`."""
        with self._transaction("BEGIN IMMEDIATE"):
            job()

    # ── parts of transactions ────────────────────────────────────────────

    @contextmanager
    def _transaction(self, begin: Literal["BEGIN", "BEGIN IMMEDIATE"]) -> Iterator[None]:
        try:
            self._db.execute(begin)
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _change(
        self,
        task_id: str,
        actor: str,
        action: Action,
        detail: Mapping[str, JsonValue],
        *,
        deleted: bool = False,
    ) -> int:
        """Count one change of a task and write it into its history; the new revision's number."""
        self._db.execute("UPDATE store SET revision = revision + 1")
        number = self.revision().number
        self._db.execute(
            "INSERT INTO tasks VALUES (?, ?, ?)"
            " ON CONFLICT (task_id) DO UPDATE SET deleted = excluded.deleted, revision = excluded.revision",
            (task_id, deleted, number),
        )
        self._db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
            (task_id, number, time.time(), actor, action, json.dumps(detail)),
        )
        self._db.execute(
            "DELETE FROM events WHERE task_id = ?1 AND revision <="
            " (SELECT revision FROM events WHERE task_id = ?1 ORDER BY revision DESC LIMIT 1 OFFSET ?2)",
            (task_id, HISTORY_KEPT),
        )
        return number

    def _require_task(self, task_id: str) -> None:
        row = self._db.execute("SELECT deleted FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
        if row is None or row[0]:
            raise UnknownTask(f"unknown task {task_id}")

    def _has_version(self, task_id: str, version: str) -> bool:
        query = "SELECT 1 FROM versions WHERE task_id = ? AND version = ?"
        return self._db.execute(query, (task_id, version)).fetchone() is not None

    def _compare(self, task_id: str, alias: str, expected: int | None) -> int:
        """The alias's revision, 0 when there is none; RevisionConflict unless it is the expected one."""
        query = "SELECT revision FROM aliases WHERE task_id = ? AND name = ?"
        row = self._db.execute(query, (task_id, alias)).fetchone()
        current = 0 if row is None else int(row[0])
        if expected is not None and expected != current:
            where = f"is at revision {current}" if current else "does not exist"
            raise RevisionConflict(
                f"expected the alias {alias} at revision {expected}, but it {where}", current=current
            )
        return current
