"""How the catalogue asks SQLite: few queries, by index, durably; and how it comes to be."""

import re
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prompt_store import Revision, Target
from prompt_store.catalogue import HISTORY_KEPT, Catalogue
from prompt_store.store import VersionRecord


def make_catalogue(folder: Path) -> Catalogue:
    folder.mkdir(parents=True)
    return Catalogue(folder / "catalogue.sqlite3")


def record(version: str) -> VersionRecord:
    return VersionRecord(version, 1, 0.0, "m", 2)


async def test_the_catalogue_is_kept_safe_from_power_cuts(folder: Path) -> None:
    catalogue = make_catalogue(folder)
    settings = [
        catalogue._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    ]
    assert settings == ["wal", 2]
    catalogue.close()


async def test_a_page_takes_as_many_queries_for_fifty_tasks_as_for_two(folder: Path) -> None:
    catalogue = make_catalogue(folder)
    for i in range(50):
        catalogue.add_version(f"task-{i}", record(f"{i:064}"), "", ensure_blob=lambda: None)
        catalogue.set_alias(f"task-{i}", "current", [Target(f"{i:064}")], 0, "")
    statements: list[str] = []
    catalogue._db.set_trace_callback(statements.append)
    counts = []
    for limit in (2, 50):
        assert len(catalogue.page(None, limit).tasks) == limit
        counts.append(len(statements))
        statements.clear()
    assert counts[0] == counts[1] > 3
    catalogue.close()


async def test_a_page_and_a_watch_are_read_by_index(folder: Path) -> None:
    """No plan scans or sorts a whole table: pages of a hundred thousand tasks depend on it."""
    catalogue = make_catalogue(folder)
    catalogue.add_version("a", record("0" * 64), "", ensure_blob=lambda: None)
    statements: list[str] = []
    catalogue._db.set_trace_callback(statements.append)
    catalogue.page("a", 100)
    catalogue.page(None, 100)
    catalogue.changes(Revision(catalogue.revision().epoch, 0))
    catalogue.unless_needed(["0" * 64], lambda _: None)
    catalogue._db.set_trace_callback(None)
    queries = {query for query in statements if query.startswith("SELECT") and "FROM store" not in query}
    assert len(queries) >= 5
    for query in queries:
        plan = [row[3] for row in catalogue._db.execute(f"EXPLAIN QUERY PLAN {query}")]
        # Versions are sorted within their task only, which is what RIGHT PART or LAST TERM says.
        assert all(re.match("SEARCH|USE TEMP B-TREE FOR (RIGHT PART|LAST TERM)", step) for step in plan), plan
    catalogue.close()


async def test_history_keeps_the_latest_events_of_each_task(folder: Path) -> None:
    catalogue = make_catalogue(folder)
    catalogue._db.execute("PRAGMA synchronous = OFF")
    catalogue.add_version("other", record("0" * 64), "", ensure_blob=lambda: None)
    catalogue.add_version("busy", record("0" * 64), "", ensure_blob=lambda: None)
    for _ in range(HISTORY_KEPT + 20):
        catalogue.set_alias("busy", "current", [Target("0" * 64)], None, "")
    history = catalogue.history("busy", HISTORY_KEPT * 2)
    assert len(history) == HISTORY_KEPT
    assert history[0].revision == catalogue.revision().number
    assert len(catalogue.history("other", 10)) == 1
    catalogue.close()


@pytest.mark.parametrize("early", range(25))
def test_two_may_make_the_store_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch, early: int) -> None:
    """Another process makes the store just before our `early`-th statement, or waits for us, or comes after."""
    monkeypatch.setattr("prompt_store.schema.BUSY_SECONDS", 0.01)
    folder.mkdir(parents=True)
    path = folder / "catalogue.sqlite3"
    others: list[Revision] = []
    statements = 0

    def other() -> None:
        monkeypatch.setattr(sqlite3, "connect", connect)
        with suppress(sqlite3.OperationalError):  # the lock is ours
            catalogue = Catalogue(path)
            others.append(catalogue.revision())
            catalogue.close()

    class Connection(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            nonlocal statements
            if statements == early:
                other()
            statements += 1
            return super().execute(*arguments)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Connection, **k))
    ours = Catalogue(path)
    other()
    assert {ours.revision()} == set(others)
    ours.close()
