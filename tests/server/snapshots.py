"""What the tests of the snapshot share: the parts of a server that it works with."""

import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from prompt_store import Revision, Target
from server.catalogue import Catalogue, Problem, ServedTask
from server.metrics import Metrics
from server.snapshot import Snapshot
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
