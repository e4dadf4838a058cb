import hashlib
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from server import disk_tier
from server.disk_tier import DiskTier, FolderNotPrivate, private_folder


def version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make(folder: Path, capacity: int = 10_000) -> DiskTier:
    return DiskTier(folder / "prompts", capacity, max_file_bytes=5000)


def put(tier: DiskTier, number: int, *, age: float = 0.0) -> str:
    data = bytes([number]) * 1000
    tier.write(version(data), data)
    path = tier._path(version(data))
    if age and path.exists():
        os.utime(path, (time.time() - age, time.time() - age))
    return version(data)


def test_what_was_written_is_read_also_by_the_next_process(tmp_path: Path) -> None:
    name = put(make(tmp_path), 1)
    again = make(tmp_path)
    again.count()
    assert again.read(name) == b"\x01" * 1000
    assert (len(again), again.nbytes) == (1, 1000)
    assert again.has(name)
    assert again.read("0" * 64) is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    tier = make(tmp_path, 5000)
    names = [put(tier, number, age=1000 - number) for number in range(5)]
    assert tier.read(names[0]) is not None  # used now
    data = b"new" * 400
    assert (
        tier.write(version(data), data) == 2
    )  # down to the low-water mark, so that the next write need not look
    assert [tier.has(name) for name in names] == [True, False, False, True, True]
    assert tier.nbytes <= 5000
    assert tier.has(version(data))


def test_what_other_processes_put_there_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tier, "_COUNT_EVERY", 0.0)
    one, two = make(tmp_path, 5000), make(tmp_path, 5000)
    for number in range(20):
        put((one, two)[number % 2], number, age=100 - number)
        assert sum(path.stat().st_size for path in (tmp_path / "prompts").iterdir()) <= 5000


def test_a_file_that_grew_is_not_read_to_its_end(tmp_path: Path) -> None:
    tier = make(tmp_path)
    name = put(tier, 1)
    tier._path(name).write_bytes(bytes(1_000_000))
    assert tier.read(name) == b""


def test_what_is_used_in_memory_stays_when_room_is_made(tmp_path: Path) -> None:
    tier = make(tmp_path, 5000)
    names = [put(tier, number, age=1000 - number) for number in range(5)]
    tier.touch([names[1], "0" * 64, names[0]])
    data = b"new" * 400
    assert tier.write(version(data), data) == 2
    assert [tier.has(name) for name in names] == [True, True, False, False, True]


def test_nothing_is_touched_while_nothing_need_go(tmp_path: Path) -> None:
    tier = make(tmp_path, 5000)
    name = put(tier, 1, age=1000)
    before = tier._path(name).stat().st_mtime
    tier.touch([name])
    assert tier._path(name).stat().st_mtime == before


def test_files_and_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "cache" / "prompts", 5000, max_file_bytes=5000)
    path = tier._path(put(tier, 1))
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent, path.parent.parent)] == [
        0o600,
        0o700,
        0o700,
    ]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("which", ["cache", "cache/prompts"])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, which: str, mode: int) -> None:
    (tmp_path / "cache" / "prompts").mkdir(parents=True, mode=0o700)
    (tmp_path / "cache").chmod(0o700)
    (tmp_path / which).chmod(mode)
    tier = DiskTier(tmp_path / "cache" / "prompts", 5000, max_file_bytes=5000)
    with pytest.raises(FolderNotPrivate):
        tier.count()
    with pytest.raises(FolderNotPrivate):
        put(tier, 1)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private_folder(tmp_path / "cache")
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    private_folder(tmp_path / "link")  # our own link
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for name in ("cache", "link"):
        with pytest.raises(FolderNotPrivate):
            private_folder(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    private_folder(tmp_path / "cache")
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    os.lchown(tmp_path / "link", 12345, -1)
    with pytest.raises(FolderNotPrivate):
        private_folder(tmp_path / "link")


def test_what_is_no_file_is_neither_waited_for_nor_followed(tmp_path: Path) -> None:
    tier = make(tmp_path)
    target = tmp_path / "target"
    target.write_bytes(bytes(10))
    pipe, link = (tier._path(put(tier, number)) for number in (1, 2))
    pipe.unlink()
    link.unlink()
    os.mkfifo(pipe)
    link.symlink_to(target)
    found: list[bytes | None] = []
    thread = threading.Thread(
        target=lambda: found.extend(tier.read(path.stem) for path in (pipe, link)), daemon=True
    )
    thread.start()
    thread.join(60)
    assert found == [b"", b""]


def test_dropping_and_writing_again(tmp_path: Path) -> None:
    tier = make(tmp_path)
    name = put(tier, 1)
    assert put(tier, 1) == name
    assert (len(tier), tier.nbytes) == (1, 1000)
    tier.drop(name)
    tier.drop(name)
    assert (len(tier), tier.nbytes, tier.read(name)) == (0, 0, None)


def test_files_of_others_are_left_alone_and_leftovers_removed(tmp_path: Path) -> None:
    tier = make(tmp_path, 3000)
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("notes.txt", "short.safetensors", "old.tmp", "new.tmp"):
        (folder / name).write_bytes(bytes(2000))
    os.utime(folder / "old.tmp", (0, 0))
    for number in range(6):
        put(tier, number)
    assert sorted(path.name for path in folder.iterdir() if len(path.name) < 40) == [
        "new.tmp",
        "notes.txt",
        "short.safetensors",
    ]
    assert tier.nbytes <= 3000


def test_one_too_large_is_not_written(tmp_path: Path) -> None:
    tier = make(tmp_path, 500)
    name = put(tier, 1)
    assert not tier.has(name)


def test_a_folder_that_cannot_be_raises_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a file where the folder should be")
    tier = make(tmp_path)
    with pytest.raises(OSError):  # noqa: PT011 — which one depends on the file system
        tier.count()
    with pytest.raises(OSError):  # noqa: PT011
        put(tier, 1)


def test_many_threads(tmp_path: Path) -> None:
    tier = make(tmp_path, 20_000)

    def work(first: int) -> None:
        for number in range(first, first + 30):
            name = put(tier, number)
            data = tier.read(name)
            assert data is None or version(data) == name  # None: evicted by another thread

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 30, 60, 90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tier.count()
    assert 0 < tier.nbytes <= 20_000
