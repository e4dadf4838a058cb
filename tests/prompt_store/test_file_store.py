"""What only the file store has: a disk that fails, files that others touch, a schema that grows."""

# ruff: noqa: ASYNC240 — a test may look at its few files without leaving the event loop

import asyncio
import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from prompt_store import (
    CorruptVersion,
    FileStore,
    PromptStoreError,
    Revision,
    StoreUnavailable,
    Target,
    UnknownTask,
    UnknownVersion,
    version_of,
)
from prompt_store.catalogue import HISTORY_KEPT, Catalogue
from prompt_store.schema import SCHEMA_VERSION
from prompt_store.store import VersionRecord


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "store"


@contextmanager
def fault(
    steps: list[str], at: int, error: Callable[[], Exception], *, after: bool = False
) -> Iterator[None]:
    """Let the `at`-th step on the disk fail with `error`, before it is done or `after`; notes all in `steps`.

    A step is a write, fsync, rename, mkdir, or SQL statement that writes.
    """

    over = False

    def wrap(name: str, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if over:  # connections that were made meanwhile go on
                return function(*arguments, **keywords)
            steps.append(name)
            fails = len(steps) == at
            if fails and not after:
                raise error()
            result = function(*arguments, **keywords)
            if fails:
                raise error()
            return result

        return call

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            first = sql.split()[0]
            run = super().execute
            return (run if first in ("SELECT", "PRAGMA", "ROLLBACK") else wrap(first, run))(sql, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Connection, **k))
        for name in ("write", "fsync", "replace", "mkdir"):
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        try:
            yield
        finally:
            over = True


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def io_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error


def a_power_cut() -> RuntimeError:
    return RuntimeError("the machine stops here")


async def whole(store: FileStore) -> dict[str, list[str]]:
    """Every version of every task, having seen that each is intact."""
    state = {}
    for task in (await store.list()).tasks:
        state[task.task_id] = [record.version for record in task.versions]
        for version in state[task.task_id]:
            assert version_of(await store.get(task.task_id, version)) == version
    return state


@pytest.mark.parametrize(("error", "after"), [(no_space, False), (io_error, False), (a_power_cut, True)])
@pytest.mark.parametrize("new", [True, False], ids=["new store", "old store"])
async def test_a_publish_that_fails_at_any_step_leaves_a_whole_store(
    folder: Path, build: Any, new: bool, error: Callable[[], Exception], after: bool
) -> None:
    old, fresh = build.prompt(), build.prompt(seed=1)
    before = {} if new else {"sentiment": [version_of(old)]}
    complete = {"sentiment": [version_of(fresh), *before.get("sentiment", ())]}
    reached: set[str] = set()
    for at in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        if not new:
            store = FileStore(folder)
            await store.publish(old)
            await store.aclose()
        steps: list[str] = []
        store, failed = FileStore(folder), False
        with fault(steps, at, error, after=after):
            try:
                await store.publish(fresh)
            except (StoreUnavailable, RuntimeError):
                failed = True
        # The same store goes on after the fault, and so does one that is opened after a crash.
        survivor = FileStore(folder)
        for each in (store, survivor):
            state = await whole(each)
            assert state == complete if not failed else state in (before, complete)
        assert (await store.publish(fresh)).version == version_of(fresh)
        assert await whole(survivor) == complete
        await store.collect(grace=0)
        assert not [*(folder / "tmp").iterdir()]
        assert len([*(folder / "blobs").iterdir()]) == len(complete["sentiment"])
        await store.aclose()
        await survivor.aclose()
        if len(steps) < at:
            break
        reached.add(steps[at - 1])
    else:
        pytest.fail("there is no end of steps")
    assert reached >= {"write", "fsync", "replace", "BEGIN", "INSERT", "UPDATE", "COMMIT"}
    assert ("mkdir" in reached) == new


async def test_an_alias_that_fails_to_move_at_any_step_is_at_one_of_two_places(
    folder: Path, build: Any
) -> None:
    store = FileStore(folder)
    old, new = [Target((await store.publish(build.prompt(seed=seed))).version) for seed in (0, 1)]
    alias = await store.set_alias("sentiment", "current", [old], expected_revision=0)
    moved = 0
    for at in range(1, 100):
        steps: list[str] = []
        failing = FileStore(folder)
        await failing.revision()
        with fault(steps, at, io_error, after=at % 2 == 0), suppress(StoreUnavailable):
            await failing.set_alias("sentiment", "current", [new], expected_revision=alias.revision)
        await failing.aclose()
        now = (await store.task("sentiment")).aliases["current"]
        assert now.targets in ((old,), (new,))
        assert (now == alias) == (now.targets == (old,))
        moved += now != alias
        if len(steps) < at:
            break
        alias = await store.set_alias("sentiment", "current", [old], expected_revision=now.revision)
    assert moved > 0
    await store.aclose()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.EROFS, "read-write"),
        (errno.EACCES, "may use it"),
        (errno.EIO, "check the disk"),
        (errno.EMFILE, "ulimit"),
        (errno.ELOOP, "Too many levels"),
    ],
)
async def test_a_failing_disk_says_what_to_do(
    folder: Path, build: Any, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    store = FileStore(folder)
    await store.publish(build.prompt())

    def fail(*_: Any) -> None:
        raise OSError(number, "secret words", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreUnavailable, match=advice) as caught:
            await store.publish(build.prompt(seed=1))
    assert isinstance(caught.value.__cause__, OSError)
    assert "secret" not in str(caught.value)
    assert str(folder) not in str(caught.value)
    assert not [*(folder / "tmp").iterdir()]
    assert await whole(store) == {"sentiment": [version_of(build.prompt())]}
    await store.aclose()


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_FULL, "free space"),
        (sqlite3.SQLITE_READONLY | 5 << 8, "read-write"),
        (sqlite3.SQLITE_IOERR | 4 << 8, "check the disk"),
        (sqlite3.SQLITE_CANTOPEN, "may use it"),
        (sqlite3.SQLITE_BUSY, "another process"),
        (sqlite3.SQLITE_CORRUPT, "backup"),
        (sqlite3.SQLITE_MISUSE, "see the log"),
    ],
)
async def test_a_failing_catalogue_says_what_to_do(folder: Path, build: Any, code: int, advice: str) -> None:
    def error() -> sqlite3.OperationalError:
        error = sqlite3.OperationalError("secret words")
        error.sqlite_errorcode = code
        return error

    store = FileStore(folder)
    await store.publish(build.prompt())
    await store.aclose()
    clean: list[str] = []
    with fault(clean, 0, error):
        store = FileStore(folder)
        await store.list()
        await store.aclose()
    with fault([], clean.index("BEGIN") + 1, error):
        store = FileStore(folder)
        with pytest.raises(StoreUnavailable, match=advice) as caught:
            await store.list()
    assert [task.task_id for task in (await store.list()).tasks] == ["sentiment"]
    assert "secret" not in str(caught.value)
    await store.aclose()


async def test_a_locked_catalogue_is_unavailable_and_then_works(
    folder: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_store.schema.BUSY_SECONDS", 0.05)
    store = FileStore(folder)
    await store.publish(build.prompt())
    hog = sqlite3.connect(folder / "catalogue.sqlite3", isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another process keeps the store locked"):
        await store.publish(build.prompt(seed=1))
    assert (await store.task("sentiment")).revision == 1  # readers do not wait for writers
    hog.execute("ROLLBACK")
    hog.close()
    assert (await store.publish(build.prompt(seed=1))).created is True
    await store.aclose()


@pytest.mark.parametrize("content", [b"", b"no database at all", b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_catalogue_that_is_no_database(folder: Path, build: Any, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "catalogue.sqlite3").write_bytes(content)
    store = FileStore(folder)
    if content:
        with pytest.raises(StoreUnavailable, match="damaged: restore it"):
            await store.revision()
        assert (folder / "catalogue.sqlite3").read_bytes() == content
    else:
        assert (await store.publish(build.prompt())).created is True  # SQLite makes an empty file first
    await store.aclose()


async def test_a_newer_schema_is_refused_and_left_alone(folder: Path, build: Any) -> None:
    store = FileStore(folder)
    await store.publish(build.prompt())
    await store.aclose()
    database = sqlite3.connect(folder / "catalogue.sqlite3")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    store = FileStore(folder)
    for call in (store.list(), store.publish(build.prompt(seed=1))):
        with pytest.raises(PromptStoreError, match=f"schema {SCHEMA_VERSION + 1}.*upgrade promptmux"):
            await call
    await store.aclose()


async def test_another_programs_database_is_refused_and_left_alone(folder: Path) -> None:
    folder.mkdir(parents=True)
    database = sqlite3.connect(folder / "catalogue.sqlite3")
    database.execute("CREATE TABLE theirs (a)")
    store = FileStore(folder)
    with pytest.raises(PromptStoreError, match="another program's"):
        await store.revision()
    assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    database.close()
    await store.aclose()


async def test_the_catalogue_is_kept_safe_from_power_cuts(folder: Path) -> None:
    catalogue = make_catalogue(folder)
    settings = [
        catalogue._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    ]
    assert settings == ["wal", 2]
    catalogue.close()


async def test_a_file_where_the_folder_should_be(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")
    store = FileStore(folder)
    with pytest.raises(StoreUnavailable, match="its folder exists"):
        await store.revision()
    await store.aclose()


async def test_a_wiped_store_is_a_new_one_to_whoever_has_it_open(folder: Path, build: Any) -> None:
    store = FileStore(folder)
    before = (await store.publish(build.prompt())).revision
    shutil.rmtree(folder)
    changes = await store.watch(before, timeout=60)
    assert (changes.reset, changes.revision.number) == (True, 0)
    assert changes.revision.epoch != before.epoch
    with pytest.raises(UnknownTask):
        await store.task("sentiment")
    assert (await store.publish(build.prompt())).created is True
    assert await whole(store) == {"sentiment": [version_of(build.prompt())]}
    await store.aclose()


async def test_a_store_restored_from_an_older_copy_is_seen(folder: Path, build: Any, tmp_path: Path) -> None:
    store = FileStore(folder)
    await store.publish(build.prompt())
    await store.aclose()
    shutil.copytree(folder, tmp_path / "backup")
    store = FileStore(folder)
    after = (await store.publish(build.prompt(seed=1))).revision
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    assert (await store.watch(after, timeout=60)).reset is True
    assert await store.revision() == Revision(after.epoch, 1)
    await store.aclose()


async def test_leftovers_of_crashed_publishes_are_collected_after_the_grace(folder: Path, build: Any) -> None:
    store = FileStore(folder)
    await store.publish(build.prompt())
    leftover = folder / "tmp" / ("a" * 32)
    leftover.write_bytes(b"half")
    orphan = folder / "blobs" / f"{'b' * 64}.safetensors"
    orphan.write_bytes(b"whole, but its row never came")
    strangers = [
        folder / "blobs" / "README",
        folder / "blobs" / f"{'c' * 64}.txt",
        folder / "blobs" / ("d" * 64),
    ]
    for stranger in strangers:
        stranger.write_text("not ours")
    assert (await store.collect(grace=3600)).blobs == 0
    assert leftover.exists()
    collected = await store.collect(grace=0)
    assert (collected.blobs, collected.bytes) == (1, 29)
    assert not leftover.exists()
    assert not orphan.exists()
    assert all(stranger.exists() for stranger in strangers)
    await store.aclose()


async def test_the_grace_of_a_deleted_version_begins_with_its_delete(folder: Path, build: Any) -> None:
    store = FileStore(folder)
    for seed in range(2):
        version = (await store.publish(build.prompt(seed=seed))).version
        os.utime(folder / "blobs" / f"{version}.safetensors", (0, 0))  # published long ago
        if seed == 0:
            await store.delete_version("sentiment", version)
        else:
            await store.delete_task("sentiment")
        assert (await store.collect(grace=3600)).blobs == 0
    assert (await store.collect(grace=0)).blobs == 2
    await store.aclose()


@pytest.mark.parametrize("moment", ["while it is written", "before its row"])
async def test_a_collection_in_the_middle_of_a_publish_costs_it_a_retry(
    folder: Path, build: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The worst moments, made to happen: the temporary file or the new blob is swept away."""
    store = FileStore(folder)
    await store.revision()
    swept: list[Path] = []
    name = "replace" if moment == "while it is written" else "fsync"
    original = getattr(os, name)

    def sweep(*arguments: Any) -> None:
        if name == "fsync":
            original(*arguments)
        for path in (folder / ("tmp" if name == "replace" else "blobs")).iterdir():
            if not swept:
                path.unlink()
                swept.append(path)
        if name == "replace":
            original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, sweep)
        assert (await store.publish(build.prompt())).created is True
    assert len(swept) == 1
    assert await store.get("sentiment", version_of(build.prompt())) == build.prompt()
    await store.aclose()


async def test_a_publish_whose_bytes_always_vanish_gives_up_without_a_row(
    folder: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(folder)
    monkeypatch.setattr(os, "replace", lambda source, _: os.unlink(source))
    with pytest.raises(StoreUnavailable, match="try again"):
        await store.publish(build.prompt())
    assert (await store.list()).tasks == ()
    await store.aclose()


async def test_a_version_deleted_while_it_is_fetched_is_unknown_not_corrupt(
    folder: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = FileStore(folder), FileStore(folder)
    version = (await store.publish(build.prompt())).version
    intact = FileStore._intact

    def late(self: FileStore, *arguments: Any) -> bytes | None:
        async def delete() -> None:
            await other.delete_version("sentiment", version)
            await other.collect(grace=0)
            await other.aclose()

        asyncio.run(delete())
        return intact(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "_intact", late)
        with pytest.raises(UnknownVersion):
            await store.get("sentiment", version)
    await store.aclose()


async def test_a_blob_is_read_only_and_never_larger_than_its_record(folder: Path, build: Any) -> None:
    store = FileStore(folder)
    version = (await store.publish(build.prompt())).version
    blob = folder / "blobs" / f"{version}.safetensors"
    assert blob.stat().st_mode & 0o222 == 0
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.truncate(2**40)  # sparse: reading it would take all memory
    with pytest.raises(CorruptVersion):
        await store.get("sentiment", version)
    await store.aclose()


async def test_a_cancelled_publish_leaves_a_whole_store(folder: Path, build: Any) -> None:
    store = FileStore(folder)
    for turns in range(30):
        publish = asyncio.create_task(store.publish(build.prompt(seed=turns)))
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0005 * turns)
        publish.cancel()
        with suppress(asyncio.CancelledError):
            await publish
    await store.aclose()
    survivor = FileStore(folder)
    await whole(survivor)
    assert (await survivor.publish(build.prompt(seed=99))).created is True
    await survivor.aclose()


def make_catalogue(folder: Path) -> Catalogue:
    folder.mkdir(parents=True)
    return Catalogue(folder / "catalogue.sqlite3")


def record(version: str) -> VersionRecord:
    return VersionRecord(version, 1, 0.0, "m", 2)


async def test_a_page_takes_as_many_queries_for_fifty_tasks_as_for_two(folder: Path) -> None:
    catalogue = make_catalogue(folder)
    for i in range(50):
        catalogue.add_version(f"task-{i}", record(f"{i:064}"), "", blob_is_there=lambda: True)
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
    catalogue.add_version("a", record("0" * 64), "", blob_is_there=lambda: True)
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
    catalogue.add_version("other", record("0" * 64), "", blob_is_there=lambda: True)
    catalogue.add_version("busy", record("0" * 64), "", blob_is_there=lambda: True)
    for _ in range(HISTORY_KEPT + 20):
        catalogue.set_alias("busy", "current", [Target("0" * 64)], None, "")
    history = catalogue.history("busy", HISTORY_KEPT * 2)
    assert len(history) == HISTORY_KEPT
    assert history[0].revision == catalogue.revision().number
    assert len(catalogue.history("other", 10)) == 1
    catalogue.close()
