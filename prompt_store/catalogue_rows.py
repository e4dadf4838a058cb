"""Tasks and versions as they stand in a catalogue's rows, read so that one damaged row hides no other task.

Owns: how rows become records. Must not know: transactions, changes.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from prompt_store.records import alias_record, as_damaged, version_record
from prompt_store.store import TaskRecord

Row = tuple[Any, ...]


def tasks_between(db: sqlite3.Connection, first: str, last: str) -> dict[str, Callable[[], TaskRecord]]:
    """The tasks with ids from `first` to `last`, in three queries, tombstones left out.

    Each comes as a call that makes the record; PromptStoreError where one of its rows is damaged.
    """
    between = "task_id BETWEEN ? AND ? ORDER BY task_id"
    aliases: dict[str, list[Row]] = {}
    for task_id, *row in db.execute(
        f"SELECT task_id, name, targets, revision FROM aliases WHERE {between}, name", (first, last)
    ):
        aliases.setdefault(task_id, []).append(tuple(row))
    versions: dict[str, list[Row]] = {}
    for task_id, *row in db.execute(
        "SELECT task_id, version, size, published_at, method, labels FROM versions"
        f" WHERE {between}, revision DESC",
        (first, last),
    ):
        versions.setdefault(task_id, []).append(tuple(row))
    tasks = db.execute(f"SELECT task_id, revision FROM tasks WHERE NOT deleted AND {between}", (first, last))
    return {
        task_id: partial(_task, task_id, aliases.get(task_id, []), versions.get(task_id, []), revision)
        for task_id, revision in tasks
    }


def _task(task_id: str, aliases: list[Row], versions: list[Row], revision: int) -> TaskRecord:
    with as_damaged(task_id):
        named = {name: alias_record(name, targets, number) for name, targets, number in aliases}
        return TaskRecord(task_id, named, tuple(version_record(*row) for row in versions), revision)


def has_version(db: sqlite3.Connection, task_id: str, version: str, size: int) -> bool:
    """Whether the task has this version with a record that is whole; `size` is that of its bytes."""
    row = db.execute(
        "SELECT version, size, published_at, method, labels FROM versions WHERE task_id = ? AND version = ?",
        (task_id, version),
    ).fetchone()
    with suppress(ValueError):
        return row is not None and version_record(*row).size == size
    return False
