"""A folder with each thing wrong that can be made wrong is found out; a good one is left in peace."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from prompt_store import open_store
from prompt_store.checkup import examine
from prompt_store.file_checkup import file_system_of
from prompt_store.finding import Finding


def found(folder: Path, *, deep: bool = False) -> dict[str, Finding]:
    findings = asyncio.run(examine(str(folder), deep=deep))
    assert all(bool(one.advice) == (one.verdict != "ok") for one in findings)
    return {one.name: one for one in findings}


@pytest.fixture
async def version(folder: Path, build: Any) -> str:
    """Of the one prompt in the store."""
    store = open_store(str(folder))
    published = await store.publish(build.prompt())
    await store.aclose()
    return published.version


def blob(folder: Path, version: str) -> Path:
    return folder / "blobs" / f"{version}.safetensors"


def listing(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.name.endswith(("-wal", "-shm"))
    }


def test_a_good_store_has_no_problems_and_is_left_as_it_was(folder: Path, version: str) -> None:
    before = listing(folder)
    findings = found(folder, deep=True)
    assert {
        one.verdict for one in findings.values() if one.name not in ("SQLite", "file system", "fsync")
    } == {"ok"}
    assert findings["catalogue"].found == "whole, journal mode WAL"
    assert findings["store"].found == "1 tasks, 1 versions, every file there"
    assert findings["every version"].found.startswith("1 read, ")
    assert listing(folder) == before


def test_no_store_is_made(folder: Path) -> None:
    assert found(folder, deep=True)["folder"].verdict == "warning"
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    assert found(folder, deep=True)["folder"].verdict == "ok"
    assert not any(folder.iterdir())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert found(file)["folder"].verdict == "problem"
    assert found(file / "below")["folder"].verdict == "problem"


def test_a_folder_of_somebody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may everything
    finding = found(folder)["folder"]
    assert finding.verdict == "problem"
    assert str(folder) in finding.advice


def test_versions_that_are_lost_or_damaged(folder: Path, version: str) -> None:
    path = blob(folder, version)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"?")
    assert found(folder)["store"].verdict == "ok", "of the right length"
    damaged = found(folder, deep=True)["every version"]
    assert damaged.verdict == "problem"
    assert f"sentiment {version[:12]}" in damaged.advice
    path.write_bytes(data[:-1])
    assert found(folder)["store"].verdict == "problem"
    path.unlink()
    assert f"sentiment {version[:12]}" in found(folder)["store"].advice


def test_what_crashed_publishes_left(folder: Path, version: str) -> None:
    left = folder / "tmp" / "left"
    left.touch()
    assert found(folder)["leftovers"].verdict == "ok", "somebody may be at it"
    os.utime(left, (time.time() - 7200,) * 2)
    finding = found(folder)["leftovers"]
    assert finding.verdict == "warning"
    assert f"promptmux collect --store {folder}" in finding.advice


def test_a_catalogue_that_is_damaged_or_another_programs(folder: Path, version: str) -> None:
    catalogue = folder / "catalogue.sqlite3"
    with sqlite3.connect(catalogue) as database:
        assert database.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    database.close()
    assert found(folder)["catalogue"].verdict == "warning"
    whole = catalogue.read_bytes()
    catalogue.write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
    assert found(folder)["catalogue"].verdict == "problem"
    catalogue.write_bytes(b"no database " * 1000)
    assert found(folder)["catalogue"].verdict == "problem"


def test_a_full_disk(folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    for free, verdict in ((2**31, "ok"), (2**29, "warning"), (2**20, "problem")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(2**40, 0, free))
        assert found(folder)["free space"].verdict == verdict


def test_a_disk_that_fails_or_is_slow(folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.12))
    assert found(folder)["fsync"].verdict == "warning"
    monkeypatch.setattr(os, "fsync", failing)
    assert found(folder)["fsync"].found == "Input/output error"


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ((3, 40, 1), "warning"),
        ((3, 44, 6), "ok"),
        ((3, 50, 6), "warning"),
        ((3, 51, 3), "ok"),
        ((4, 0, 0), "ok"),
    ],
)
def test_sqlite(
    folder: Path, monkeypatch: pytest.MonkeyPatch, release: tuple[int, ...], verdict: str
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", release)
    assert found(folder)["SQLite"].verdict == verdict


def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    shared = tmp_path / "a share"
    shared.mkdir()
    lines = ["/dev/sda / ext4 rw 0 0", "server:/x {} nfs4 rw 0 0".format(str(shared).replace(" ", "\\040"))]
    mounts.write_text("\n".join(lines) + "\n")
    assert file_system_of(tmp_path, mounts) == "ext4"
    assert file_system_of(shared, mounts) == "nfs4"
    assert file_system_of(shared / "below", mounts) == "nfs4"
    assert file_system_of(tmp_path, tmp_path / "absent") is None
    for kind, verdict in (("nfs4", "problem"), ("overlay", "warning"), ("tmpfs", "warning"), ("ext4", "ok")):
        monkeypatch.setattr("prompt_store.file_checkup.file_system_of", lambda _, kind=kind: kind)
        assert found(tmp_path)["file system"].verdict == verdict
