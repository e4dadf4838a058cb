"""The SQLite file of a file store's catalogue: its tables, its settings, and their creation.

Owns: what a connection must be like before `catalogue` uses it. Must not know: what is written.

WAL with synchronous=FULL: a commit that returned is on the disk (NORMAL would lose it in a power cut).
"""

import secrets
import sqlite3
import time
from pathlib import Path
from typing import Final

from prompt_store.errors import PromptStoreError, StoreUnavailable

CATALOGUE: Final = "catalogue.sqlite3"  # in the store's folder
SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x70_6D_75_78  # "pmux": tells our file from another program's
BUSY_SECONDS: Final = 5.0

_SCHEMA: Final = (
    "CREATE TABLE store (epoch TEXT NOT NULL, revision INTEGER NOT NULL)",
    """CREATE TABLE tasks (
        task_id TEXT PRIMARY KEY,
        deleted INTEGER NOT NULL,           -- 1: a tombstone
        revision INTEGER NOT NULL           -- of the last change
    ) WITHOUT ROWID""",
    "CREATE INDEX tasks_listed ON tasks (task_id) WHERE NOT deleted",
    "CREATE INDEX tasks_changed ON tasks (revision)",
    """CREATE TABLE versions (
        task_id TEXT NOT NULL,
        version TEXT NOT NULL,
        revision INTEGER NOT NULL,          -- of its publish; orders them
        size INTEGER NOT NULL,
        published_at REAL NOT NULL,
        method TEXT NOT NULL,
        labels INTEGER NOT NULL,
        PRIMARY KEY (task_id, version)
    ) WITHOUT ROWID""",
    "CREATE INDEX versions_by_digest ON versions (version)",
    """CREATE TABLE aliases (
        task_id TEXT NOT NULL,
        name TEXT NOT NULL,
        targets TEXT NOT NULL,              -- JSON [[version, weight], …]
        revision INTEGER NOT NULL,          -- the store's, so never used again
        PRIMARY KEY (task_id, name)
    ) WITHOUT ROWID""",
    """CREATE TABLE events (
        task_id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        at REAL NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        detail TEXT NOT NULL,               -- JSON object
        PRIMARY KEY (task_id, revision)
    ) WITHOUT ROWID""",
)


def open_database(path: Path) -> sqlite3.Connection:
    """Connect to the catalogue at `path`, made with its tables when it is not there.

    PromptStoreError when it is not ours or of a newer schema; sqlite3.Error as it comes.
    """
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    # A damaged byte must not hide the rows beside it: what does not decode is refused with its own record.
    database.text_factory = lambda raw: raw.decode(errors="replace")
    try:
        _check(database)
        _use_wal(database)
        database.execute("PRAGMA synchronous = FULL")
        _create_tables(database)
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection) -> int:
    """The schema version, 0 for an empty file; refuses a file that this code would misread."""
    # The tables first: another process may make the store between these reads, all of it in one commit.
    tables = int(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    application = int(database.execute("PRAGMA application_id").fetchone()[0])
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if tables and application != APPLICATION_ID:
        raise PromptStoreError("the catalogue is another program's file: give the store a folder of its own")
    if version > SCHEMA_VERSION:
        raise PromptStoreError(
            f"the catalogue has schema {version}, and this promptmux knows none above {SCHEMA_VERSION}:"
            " upgrade promptmux, or use another store"
        )
    return version


def _use_wal(database: sqlite3.Connection) -> None:
    # The switch to WAL does not wait for the busy timeout when two processes open a new store at once.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise StoreUnavailable("the catalogue cannot keep its log here: put the store on a local file system")


def _create_tables(database: sqlite3.Connection) -> None:
    if _check(database):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        if not _check(database):  # another process may have been first
            for statement in _SCHEMA:
                database.execute(statement)
            database.execute("INSERT INTO store VALUES (?, 0)", (secrets.token_hex(8),))
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
