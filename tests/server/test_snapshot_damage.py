"""Snapshots that are foreign, altered, torn or in a folder that others may write to are not believed."""

import errno
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from server import snapshot
from server.snapshot_file import SnapshotFile
from tests.server.snapshots import FINGERPRINT, Server, file_in, filled, left, rows


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Server]:
    return lambda **more: Server(tmp_path / "cache", **more)


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
