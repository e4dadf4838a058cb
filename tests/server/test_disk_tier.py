import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from server import disk_tier
from server.disk_tier import DiskTier


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
    assert len(tier.read(name) or b"") == 5001


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
