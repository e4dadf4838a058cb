import asyncio
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from prompt_store import Revision, Target
from server import snapshot
from server.catalogue import Catalogue, Problem, ServedTask
from server.metrics import Metrics
from server.snapshot import Snapshot, _place
from server.snapshot_file import SnapshotFile
from server.view import View

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
FINGERPRINT = "f" * 64
STORE = "redis://user:secret@host:6379/0?timeout=1"


class Server:
    """The parts that a snapshot works with."""

    def __init__(self, folder: Path, store: str = STORE) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.catalogue, self.view = Catalogue(), View(self.metrics)
        self.snapshot = Snapshot(folder, store, self.catalogue, self.view, self.metrics)

    def put(self, name: str, revision: int, *, missing: bool = False) -> ServedTask:
        task = ServedTask(
            name, revision, {"current": (Target(A, 3), Target(B, 1))}, (A, B), 1_790_000_000,
            {"canary": Problem((C,), "corrupt_version", "lost", 5.0, 6)}, missing,
        )  # fmt: skip
        self.catalogue.put(task)
        return task


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Server]:
    return lambda **more: Server(tmp_path / "cache", **more)


async def filled(server: Server, revision: int = 7, count: int = 3) -> None:
    await server.snapshot.load(FINGERPRINT)
    server.snapshot.attend()
    for number in range(count):
        server.put(f"t{number}", number + 1)
    server.view.advance(Revision("e", revision), time.monotonic())
    await server.snapshot.write()


async def left(make: Callable[..., Server], revision: int = 7, **more: str) -> None:
    """What a server that has ended left."""
    server = make(**more)
    await filled(server, revision)
    await server.snapshot.aclose()


def file_in(folder: Path) -> Path:
    return next(folder.glob("catalogue-*.sqlite3"))


async def test_what_was_served_comes_back(make: Callable[..., Server]) -> None:
    server = make()
    await filled(server)
    saved = await make().snapshot.load(FINGERPRINT)
    assert saved is not None
    assert {task.task_id: task for task in saved.tasks} == {task.task_id: task for task in server.catalogue}
    assert saved.revision == Revision("e", 7)
    assert 0 <= saved.age < 60


async def test_changes_are_written_and_only_they(make: Callable[..., Server], tmp_path: Path) -> None:
    server = make()
    await filled(server)
    with sqlite3.connect(file_in(tmp_path / "cache")) as database:
        database.execute("CREATE TABLE touched (task_id TEXT)")
        database.execute(
            "CREATE TRIGGER t AFTER UPDATE ON tasks BEGIN INSERT INTO touched VALUES (new.task_id); END"
        )
    database.close()
    server.put("t1", 8)
    server.catalogue.drop("t2")
    server.view.advance(Revision("e", 9), time.monotonic())
    await server.snapshot.aclose()
    database = sqlite3.connect(file_in(tmp_path / "cache"))
    assert database.execute("SELECT task_id FROM touched").fetchall() == [("t1",)]
    database.close()
    saved = await make().snapshot.load(FINGERPRINT)
    assert saved is not None
    assert sorted((task.task_id, task.revision) for task in saved.tasks) == [("t0", 1), ("t1", 8)]


async def test_another_password_is_the_same_store_another_place_is_not(make: Callable[..., Server]) -> None:
    await filled(make())
    assert await make(store="redis://user:other@host:6379/0").snapshot.load(FINGERPRINT) is not None
    assert await make(store="redis://host:6379/0?prefix=other:").snapshot.load(FINGERPRINT) is None
    assert await make(store="redis://user:secret@host:6379/1").snapshot.load(FINGERPRINT) is None
    assert await make().snapshot.load("0" * 64) is None


async def test_a_foreign_snapshot_is_put_aside_and_said(
    make: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await left(make)
    own = file_in(tmp_path / "cache")
    await left(make, store="redis://elsewhere/0")
    other = next(path for path in (tmp_path / "cache").glob("catalogue-*.sqlite3") if path != own)
    other.replace(own)
    mine = make()
    assert await mine.snapshot.load(FINGERPRINT) is None
    assert "snapshot_ignored" in capsys.readouterr().out
    assert own.with_name(f"{own.name}.ignored").exists()
    await mine.snapshot.aclose()
    await left(make, revision=9)
    saved = await make().snapshot.load(FINGERPRINT)
    assert saved is not None
    assert saved.revision.number == 9


@pytest.mark.parametrize("table", ["tasks", "meta"])
async def test_one_altered_byte_is_noticed(
    make: Callable[..., Server], tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(make())
    database = sqlite3.connect(file_in(tmp_path / "cache"))
    body = database.execute(f"SELECT body FROM {table}").fetchone()[0]
    changed = body.replace(b"a", b"b", 1) if table == "tasks" else body.replace(b"7", b"9", 1)
    assert changed != body
    database.execute(f"UPDATE {table} SET body = ? WHERE body = ?", (changed, body))
    database.commit()
    database.close()
    assert await make().snapshot.load(FINGERPRINT) is None
    assert "snapshot_ignored" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [b"", b"not SQLite at all" * 400])
async def test_a_file_that_is_none(make: Callable[..., Server], tmp_path: Path, damage: bytes) -> None:
    await left(make)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(damage)
    server = make()
    assert await server.snapshot.load(FINGERPRINT) is None
    await server.snapshot.aclose()
    await left(make)  # and a new one can be written in its place
    assert await make().snapshot.load(FINGERPRINT) is not None


async def recalled(server: Server, revision: Revision) -> None:
    """Let it begin with the snapshot, and the store have told it of nothing after `revision`."""
    saved = await server.snapshot.load(FINGERPRINT)
    server.snapshot.attend()
    assert saved is not None
    for task in saved.tasks:
        server.catalogue.put(task)
    server.view.recall(saved.revision, saved.age)
    server.view.advance(revision, time.monotonic())


async def rows(make: Callable[..., Server]) -> tuple[Revision, dict[str, int]]:
    saved = await make().snapshot.load(FINGERPRINT)
    assert saved is not None
    return saved.revision, {task.task_id: task.revision for task in saved.tasks}


async def test_of_two_servers_the_one_that_lags_puts_nothing_back(make: Callable[..., Server]) -> None:
    ahead, behind = make(), make()
    await filled(ahead, revision=7)
    await recalled(behind, Revision("e", 8))
    ahead.put("t1", 20)
    ahead.catalogue.drop("t2")
    ahead.view.advance(Revision("e", 20), time.monotonic())
    await ahead.snapshot.write()
    behind.put("t1", 5)
    behind.put("t2", 8)
    wanted = (Revision("e", 20), {"t0": 1, "t1": 20})
    await behind.snapshot.write()
    assert await rows(make) == wanted
    await ahead.snapshot.aclose()  # it may write now, but what it has is older
    await behind.snapshot.write()
    assert await rows(make) == wanted
    behind.put("t1", 20)
    behind.put("t3", 21)
    behind.catalogue.drop("t2")
    behind.view.advance(Revision("e", 21), time.monotonic())
    await behind.snapshot.write()
    assert await rows(make) == (Revision("e", 21), {"t0": 1, "t1": 20, "t3": 21})


async def test_a_server_that_has_not_seen_the_new_epoch_puts_nothing_back(
    make: Callable[..., Server],
) -> None:
    first, late = make(), make()
    await filled(first, revision=7)
    await recalled(late, Revision("e", 9))
    first.put("t1", 0, missing=True)
    first.view.advance(Revision("new", 1), time.monotonic(), lost=True)
    await first.snapshot.write()
    for end in (False, True):
        if end:
            await first.snapshot.aclose()
        late.put("t1", 9)
        await late.snapshot.write()
        assert await rows(make) == (Revision("new", 1), {"t0": 1, "t1": 0, "t2": 3})
    late.view.advance(Revision("new", 1), time.monotonic(), lost=True)
    await late.snapshot.write()
    assert await rows(make) == (Revision("new", 1), {"t0": 1, "t1": 9, "t2": 3})


async def test_a_file_that_somebody_removed_is_written_whole(
    make: Callable[..., Server], tmp_path: Path
) -> None:
    server = make()
    await filled(server)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    server.put("t1", 8)
    await server.snapshot.write()
    await server.snapshot.write()
    assert (await rows(make))[1] == {"t0": 1, "t1": 8, "t2": 3}


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), OSError(errno.EIO, "I/O error"), None]
)
@pytest.mark.parametrize("passes", [False, True])
async def test_what_hinders_a_read_takes_no_healthy_snapshot(
    make: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError | None,
    passes: bool,
) -> None:
    await left(make)
    before = file_in(tmp_path / "cache").read_bytes()
    monkeypatch.setattr(snapshot, "_READ_AGAIN_AFTER", (0.01, 0.01))
    monkeypatch.setattr("server.snapshot_file._BUSY_SECONDS", 0.01)
    read, calls = SnapshotFile.read, []
    locker = sqlite3.connect(file_in(tmp_path / "cache"), isolation_level=None, check_same_thread=False)
    if error is None:  # SQLite's own: the file is locked as a whole
        locker.execute("PRAGMA journal_mode = DELETE")
        before = file_in(tmp_path / "cache").read_bytes()
        locker.execute("BEGIN EXCLUSIVE")

    def failing(file: SnapshotFile) -> object:
        calls.append(file)
        if passes and len(calls) == 3:
            locker.close()
            return read(file)
        if error is not None:
            raise error
        return read(file)

    monkeypatch.setattr(SnapshotFile, "read", failing)
    saved = await make().snapshot.load(FINGERPRINT)
    locker.close()
    said = capsys.readouterr().out
    assert (saved is not None) == passes
    assert len(calls) == 3
    assert ("snapshot_not_read" in said) == (not passes)
    assert "snapshot_ignored" not in said
    assert file_in(tmp_path / "cache").read_bytes() == before  # not its journal mode either
    assert not list((tmp_path / "cache").glob("*.ignored"))


async def test_a_damaged_file_is_not_renamed_under_the_server_that_writes_it(
    make: Callable[..., Server], tmp_path: Path
) -> None:
    writer, reader = make(), make()
    await filled(writer)
    file_in(tmp_path / "cache").write_bytes(b"not SQLite at all" * 400)
    assert await reader.snapshot.load(FINGERPRINT) is None
    assert not list((tmp_path / "cache").glob("*.ignored"))
    for _ in range(2):  # whose next write finds out
        writer.put("t1", 8)
        await writer.snapshot.write()
    assert list((tmp_path / "cache").glob("*.ignored"))
    assert (await rows(make))[1] == {"t0": 1, "t1": 8, "t2": 3}


async def test_what_is_read_is_of_one_moment(make: Callable[..., Server], tmp_path: Path) -> None:
    writer = make()
    await filled(writer)
    writing = True

    async def write() -> None:
        number = 10
        while writing:
            number += 1
            for name in ("t0", "t1", "t2"):
                writer.put(name, number)
            writer.view.advance(Revision("e", number), time.monotonic())
            await writer.snapshot.write()

    task = asyncio.create_task(write())
    await asyncio.sleep(0.05)
    for _ in range(30):
        revision, found = await rows(make)
        assert set(found.values()) in ({revision.number}, {1, 2, 3})
    writing = False
    await task


@pytest.mark.parametrize("mode", [0o777, 0o770])
async def test_a_folder_that_others_may_write_to_is_not_believed(
    make: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    await left(make)
    (tmp_path / "cache").chmod(mode)
    before = file_in(tmp_path / "cache").read_bytes()
    server = make()
    await filled(server, revision=9)
    assert await make().snapshot.load(FINGERPRINT) is None
    server.put("t1", 8)
    await server.snapshot.aclose()
    assert file_in(tmp_path / "cache").read_bytes() == before
    said = capsys.readouterr().out
    assert said.count("snapshot_refused") == 2  # once for each server
    assert "snapshot_not_written" not in said


async def test_its_files_are_for_their_owner_only(make: Callable[..., Server], tmp_path: Path) -> None:
    await filled(make())
    folder = tmp_path / "cache"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


async def test_after_a_lost_history_smaller_revisions_are_written(make: Callable[..., Server]) -> None:
    server = make()
    await filled(server, revision=70)
    server.put("t0", 0, missing=True)
    server.put("t1", 1)
    server.view.advance(Revision("e", 1), time.monotonic(), lost=True)
    await server.snapshot.write()
    saved = await make().snapshot.load(FINGERPRINT)
    assert saved is not None
    assert saved.revision.number == 1
    assert [task.missing_in_store for task in sorted(saved.tasks, key=lambda t: t.task_id)] == [
        True,
        False,
        False,
    ]


async def test_nothing_is_written_while_the_snapshot_is_all_there_is(make: Callable[..., Server]) -> None:
    await filled(make())
    server = make()
    saved = await server.snapshot.load(FINGERPRINT)
    assert saved is not None
    server.view.recall(saved.revision, 1000.0)
    server.snapshot.attend()
    server.catalogue.drop("t0")
    await server.snapshot.aclose()
    again = await make().snapshot.load(FINGERPRINT)
    assert again is not None
    assert again.age < 100


async def test_a_disk_that_fails_is_said_once_and_tried_again(
    make: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    server = make()
    await filled(server)
    server.put("t1", 8)
    await server.snapshot.write()
    assert capsys.readouterr().out.count("snapshot_not_written") == 1
    assert server.metrics.registry.get_sample_value("promptmux_snapshot_failures_total") == 2
    (tmp_path / "cache").unlink()
    await server.snapshot.write()
    saved = await make().snapshot.load(FINGERPRINT)
    assert saved is not None
    assert len(saved.tasks) == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("redis://h/0?prefix=a:", "redis://h/0?prefix=b:", False),
        ("redis://h/0", "redis://h/1", False),
        ("redis://h/0", "redis://g/0", False),
        ("redis://:old@h/0?prefix=a:&timeout=1", "redis://u:new@h/0?timeout=2&prefix=a:", True),
    ],
)
def test_a_snapshot_belongs_to_a_place(one: str, other: str, same: bool) -> None:
    assert (_place(one) == _place(other)) == same
