"""A disk or a database that fails at any step: the file store stays whole, and says what to do."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from prompt_store import (
    FileStore,
    PromptStore,
    StoreUnavailable,
    Target,
    version_of,
)

Whole = Callable[[PromptStore], Awaitable[dict[str, list[str]]]]


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


async def test_a_version_is_on_the_disk_before_its_row_is(folder: Path, build: Any) -> None:
    """File, then its name, then the catalogue: a power cut in between leaves nothing that points nowhere."""
    store = FileStore(folder)
    await store.revision()
    steps: list[str] = []
    with fault(steps, 0, no_space):
        await store.publish(build.prompt())
    written = steps[steps.index("write") :]
    assert written[:4] == ["write", "fsync", "replace", "fsync"]
    assert written.index("BEGIN") > 3
    assert written[-1] == "COMMIT"
    await store.aclose()


async def test_publishing_again_writes_nothing(folder: Path, build: Any) -> None:
    store = FileStore(folder)
    await store.publish(build.prompt())
    steps: list[str] = []
    with fault(steps, 0, no_space):
        assert (await store.publish(build.prompt())).created is False
    assert not {"write", "fsync", "replace"} & set(steps)
    await store.aclose()


async def test_a_connection_that_cannot_even_roll_back_is_replaced(
    folder: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if broken and sql.startswith(("INSERT", "ROLLBACK")):
                raise io_error()
            return super().execute(sql, *arguments)

    broken = False
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Connection, **k))
    store = FileStore(folder)
    await store.publish(build.prompt())
    broken = True
    with pytest.raises(StoreUnavailable, match="check the disk"):
        await store.publish(build.prompt(seed=1))
    broken = False
    assert (await store.publish(build.prompt(seed=1))).created is True
    await store.aclose()


async def test_every_new_folder_is_on_the_disk_before_it_is_used(folder: Path) -> None:
    steps: list[str] = []
    store = FileStore(folder)
    with fault(steps, 0, no_space):
        await store.revision()
    made = max(place for place, step in enumerate(steps) if step == "mkdir") + 1
    assert steps[made : made + 3] == ["fsync"] * 3  # a/store, a, and where a is
    assert steps.index("BEGIN") > made + 2
    await store.aclose()


@pytest.mark.parametrize(("error", "after"), [(no_space, False), (io_error, False), (a_power_cut, True)])
@pytest.mark.parametrize("new", [True, False], ids=["new store", "old store"])
async def test_a_publish_that_fails_at_any_step_leaves_a_whole_store(
    folder: Path, build: Any, whole: Whole, new: bool, error: Callable[[], Exception], after: bool
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
    alias = (await store.set_alias("sentiment", "current", [old], expected_revision=0)).alias
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
        alias = (await store.set_alias("sentiment", "current", [old], expected_revision=now.revision)).alias
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
    folder: Path, build: Any, whole: Whole, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
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
