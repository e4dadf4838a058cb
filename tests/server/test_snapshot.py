"""The catalogue's snapshot: what is written comes back, and nothing older is put over it."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prompt_store import Revision
from server.snapshot import _place
from tests.server.snapshots import FINGERPRINT, Server, file_in, filled, recalled, rows


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Server]:
    return lambda **more: Server(tmp_path / "cache", **more)


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
