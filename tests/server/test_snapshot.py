import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from prompt_store import Revision, Target
from server.catalogue import Catalogue, Problem, ServedTask
from server.metrics import Metrics
from server.snapshot import Snapshot, _place
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
            {"canary": Problem((C,), "corrupt_version", "lost", 5.0)}, missing,
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
    await filled(make())
    other = make(store="redis://elsewhere/0")
    await filled(other)
    mine = make()
    await mine.snapshot.load(FINGERPRINT)
    other.snapshot._path.replace(mine.snapshot._path)
    assert await mine.snapshot.load(FINGERPRINT) is None
    assert "snapshot_ignored" in capsys.readouterr().out
    await filled(make(), revision=9)
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
    await filled(make())
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(damage)
    server = make()
    assert await server.snapshot.load(FINGERPRINT) is None
    await filled(server)  # and a new one can be written in its place
    assert await make().snapshot.load(FINGERPRINT) is not None


async def test_of_two_servers_the_one_that_lags_puts_nothing_back(make: Callable[..., Server]) -> None:
    ahead, behind = make(), make()
    await filled(ahead, revision=7)
    saved = await behind.snapshot.load(FINGERPRINT)
    behind.snapshot.attend()
    assert saved is not None
    for task in saved.tasks:
        behind.catalogue.put(task)
    behind.view.advance(Revision("e", 6), time.monotonic())
    ahead.put("t1", 20)
    ahead.view.advance(Revision("e", 20), time.monotonic())
    await ahead.snapshot.write()
    behind.put("t1", 5)
    await behind.snapshot.write()
    saved = await make().snapshot.load(FINGERPRINT)
    assert saved is not None
    assert saved.revision.number == 20
    assert {task.task_id: task.revision for task in saved.tasks}["t1"] == 20


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
