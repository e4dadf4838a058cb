"""Several processes on one store, and processes that are killed."""

import asyncio
import itertools
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prompt_store import FileStore, PromptStore, Target, version_of

Start = Callable[..., "subprocess.Popen[str]"]


async def test_two_processes_race_for_one_alias(
    backend: Any, store: PromptStore, build: Any, start_worker: Start
) -> None:
    """Every success saw the one before it: the moves form one chain, with none lost and none twice."""
    versions = [(await store.publish(build.prompt(seed=seed))).version for seed in (0, 1)]
    start = (await store.revision()).number
    rounds = 60
    workers = [start_worker("race", backend.url, "sentiment", version, rounds) for version in versions]
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    moves: dict[int, int] = {}
    owner: dict[int, int] = {}
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for index, worker in enumerate(workers):
        out, _ = worker.communicate()
        assert worker.returncode == 0
        for line in out.splitlines():
            expected, got = map(int, line.split())
            assert expected not in moves
            moves[expected], owner[got] = got, index
    chain = [0]
    while chain[-1] in moves:
        chain.append(moves[chain[-1]])
    assert len(chain) == len(moves) + 1 == 2 * rounds + 1
    assert chain[1:] == list(range(start + 1, start + 2 * rounds + 1))
    alias = (await store.task("sentiment")).aliases["current"]
    assert (alias.revision, alias.targets) == (chain[-1], (Target(versions[owner[chain[-1]]]),))


async def check_survives(folder: Path, acknowledged: list[str], files: list[bytes]) -> None:
    """Everything acknowledged is there and intact, and at most one version more, just as intact."""
    store = FileStore(folder)
    page = await store.list()
    stored = [record.version for task in page.tasks for record in task.versions][::-1]
    assert stored[: len(acknowledged)] == acknowledged
    assert stored == [version_of(data) for data in files[: len(stored)]]
    assert len(stored) - len(acknowledged) <= 1
    assert page.revision.number == len(stored)
    for version, data in zip(stored, files, strict=False):
        assert await store.get("sentiment", version) == data
    await store.collect(grace=0)
    assert len([*(folder / "blobs").iterdir()]) == len(stored)
    assert not [*(folder / "tmp").iterdir()]
    for data in files:
        await store.publish(data)
    assert (await store.revision()).number == len(files)
    await store.aclose()


@pytest.fixture
def files(build: Any, tmp_path: Path) -> list[bytes]:
    files = [build.prompt(seed=seed) for seed in range(12)]
    (tmp_path / "files").write_text("\n".join(data.hex() for data in files))
    return files


async def test_a_publisher_killed_at_any_step_loses_nothing_acknowledged(
    tmp_path: Path, files: list[bytes], start_worker: Start
) -> None:
    """kill -9 before the n-th write to the disk: while the store is made, then over two whole publishes."""
    acknowledged: list[int] = []
    for die_at in itertools.chain((2, 9, 17), itertools.count(26, 3)):
        folder = tmp_path / f"store {die_at}"
        worker = start_worker("publish", folder.as_uri(), tmp_path / "files", die_at)
        out, _ = worker.communicate()
        assert worker.returncode == -signal.SIGKILL
        acknowledged.append(len(out.split()))
        await check_survives(folder, out.split(), files)
        if acknowledged[-1] == 2:  # how many steps that takes depends on how deep the folder lies
            break
    assert acknowledged[0] == 0


@pytest.mark.parametrize("delay", [0.003, 0.017, 0.040])
async def test_a_publisher_killed_at_any_moment_loses_nothing_acknowledged(
    tmp_path: Path, files: list[bytes], start_worker: Start, delay: float
) -> None:
    """Also between the steps that can be counted: inside SQLite, inside the kernel."""
    worker = start_worker("publish", (tmp_path / "store").as_uri(), tmp_path / "files")
    assert worker.stdout
    first = worker.stdout.readline().strip()
    await asyncio.sleep(delay)
    worker.kill()
    out, _ = worker.communicate()
    await check_survives(tmp_path / "store", [first, *out.split()], files)
