"""What only the file store has: files that others touch, locks, catalogues that are not ours."""

# ruff: noqa: ASYNC240 — a test may look at its few files without leaving the event loop

import asyncio
import errno
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prompt_store import (
    CorruptVersion,
    FileStore,
    PromptStore,
    PromptStoreError,
    Revision,
    StoreUnavailable,
    UnknownTask,
    UnknownVersion,
    version_of,
)
from prompt_store.blobs import BlobFolder
from prompt_store.schema import SCHEMA_VERSION

Whole = Callable[[PromptStore], Awaitable[dict[str, list[str]]]]


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


async def test_a_file_where_the_folder_should_be(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")
    store = FileStore(folder)
    with pytest.raises(StoreUnavailable, match="its folder exists"):
        await store.revision()
    await store.aclose()


async def test_a_wiped_store_is_a_new_one_to_whoever_has_it_open(
    folder: Path, build: Any, whole: Whole
) -> None:
    store = FileStore(folder)
    before = (await store.publish(build.prompt())).revision
    shutil.rmtree(folder)
    changes = await store.watch(before, timeout=600)
    assert (changes.reset, changes.revision.number) == (True, 0)
    assert changes.revision.epoch != before.epoch
    with pytest.raises(UnknownTask):
        await store.task("sentiment")
    assert (await store.publish(build.prompt())).created is True
    assert await whole(store) == {"sentiment": [version_of(build.prompt())]}
    await store.aclose()


async def test_a_store_that_was_restored_and_written_on_is_told_by_watch(
    folder: Path, build: Any, tmp_path: Path
) -> None:
    """The numbers go on from the copy: 3 is there again, and is another change."""
    store = FileStore(folder)
    await store.publish(build.prompt())
    shutil.copytree(folder, tmp_path / "copy")
    await store.publish(build.prompt(seed=1))
    seen = (await store.publish(build.prompt(seed=2))).revision
    assert not (await store.watch(seen, timeout=0)).reset
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    other = FileStore(folder)
    for seed in (3, 4, 5):
        await other.publish(build.prompt(seed=seed))
    changes = await store.watch(seen, timeout=0)
    assert changes.reset
    assert changes.revision == Revision(seen.epoch, 4)
    assert not (await store.watch(changes.revision, timeout=0)).reset
    await store.aclose()
    await other.aclose()


async def test_no_look_hides_that_a_store_was_restored_and_written_on(
    folder: Path, build: Any, tmp_path: Path
) -> None:
    store = FileStore(folder)
    await store.publish(build.prompt())
    shutil.copytree(folder, tmp_path / "copy")
    seen = (await store.publish(build.prompt(seed=1))).revision
    folder.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "copy", folder)
    other = FileStore(folder)
    await other.publish(build.prompt(seed=2))
    for _ in range(2):
        assert await store.revision() == seen  # the number, of another change
        changes = await store.watch(seen, timeout=0)
        assert changes.reset
    assert not (await store.watch(changes.revision, timeout=0)).reset
    await store.aclose()
    await other.aclose()


async def test_a_store_restored_from_an_older_copy_is_seen(folder: Path, build: Any, tmp_path: Path) -> None:
    store = FileStore(folder)
    await store.publish(build.prompt())
    await store.aclose()
    shutil.copytree(folder, tmp_path / "backup")
    store = FileStore(folder)
    after = (await store.publish(build.prompt(seed=1))).revision
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    assert (await store.watch(after, timeout=600)).reset is True
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
        folder / "blobs" / "theirs.safetensors",
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


async def test_no_collection_however_busy_keeps_a_publish_from_its_end(
    folder: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection between any two steps of the publish, by another process as it were."""
    store = FileStore(folder)
    await store.revision()
    locked = 0

    async def collect() -> None:
        collector = FileStore(folder)
        try:
            await collector.collect(grace=0)
        finally:
            await collector.aclose()

    def after(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal locked
            result = function(*arguments)
            try:
                asyncio.run(collect())
            except StoreUnavailable:
                locked += 1  # the publish has the lock: no collection can be here
            return result

        return call

    monkeypatch.setattr("prompt_store.schema.BUSY_SECONDS", 0.01)
    monkeypatch.setattr(BlobFolder, "write", after(BlobFolder.write))
    assert (await store.publish(build.prompt())).created is True
    assert locked == 1
    assert await store.get("sentiment", version_of(build.prompt())) == build.prompt()
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


async def test_a_blob_that_cannot_be_read_is_corrupt_and_published_anew(folder: Path, build: Any) -> None:
    store = FileStore(folder)
    version = (await store.publish(build.prompt())).version
    blob = folder / "blobs" / f"{version}.safetensors"
    blob.unlink()
    blob.symlink_to(blob)
    with pytest.raises(
        CorruptVersion, match=r"cannot be read \(Too many levels of symbolic links\): publish it anew"
    ):
        await store.get("sentiment", version)
    assert (await store.publish(build.prompt())).created is False
    assert await store.get("sentiment", version) == build.prompt()
    await store.aclose()


@pytest.mark.parametrize("call", ["size", "read"])
@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EACCES, CorruptVersion),
        (errno.EIO, CorruptVersion),
        (errno.EMFILE, StoreUnavailable),
        (errno.ENOMEM, StoreUnavailable),
        (errno.ESTALE, StoreUnavailable),
    ],
)
async def test_what_one_file_says_is_told_from_what_the_process_lacks(
    folder: Path, build: Any, monkeypatch: pytest.MonkeyPatch, call: str, number: int, error: type[Exception]
) -> None:
    store = FileStore(folder)
    version = (await store.publish(build.prompt())).version

    def fail(*_: Any) -> None:
        raise OSError(number, "secret words", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(BlobFolder, call, fail)
        with pytest.raises(error) as caught:
            await store.get("sentiment", version)
        patch.setattr(BlobFolder, "usable", lambda _: False)  # it is not this file alone
        with pytest.raises(StoreUnavailable):
            await store.get("sentiment", version)
    assert "secret" not in str(caught.value)
    assert await store.get("sentiment", version) == build.prompt()
    await store.aclose()


async def test_a_cancelled_publish_leaves_a_whole_store(folder: Path, build: Any, whole: Whole) -> None:
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
