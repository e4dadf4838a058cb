"""A server process whose store goes away, while it runs and while it starts. The store is a real one in a folder; it is
away while a file stands where the folder was.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import httpx
import pytest

from prompt_store import version_of
from tests.integration.conftest import PATIENCE, Serve, ServerProcess
from tests.server.fakes import prompt_bytes

BETTER = prompt_bytes(favours=1)


class Store:
    """A folder that can be taken away and put back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "store"
        self.flags = ("--store", f"file://{self.folder}", "--cache-dir", str(folder / "cache"))

    def take_away(self) -> None:
        self.folder.rename(self.folder.with_name("elsewhere"))
        self.folder.write_text("")

    def put_back(self) -> None:
        self.folder.unlink()
        self.folder.with_name("elsewhere").rename(self.folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def upload(server: ServerProcess) -> httpx.Response:
    path = f"/admin/tasks/sentiment/versions/{version_of(BETTER)}"
    headers = {"Content-Type": "application/octet-stream"}
    return httpx.put(server.admin_url + path, content=BETTER, headers=headers, timeout=PATIENCE)


def source(server: ServerProcess) -> str:
    return str(httpx.get(f"{server.url}/readyz").json()["store"]["source"])


def saved_revision(store: Store) -> int:
    """What the snapshot on the disk has."""
    for path in (store.folder.parent / "cache").glob("catalogue-*.sqlite3"):
        with sqlite3.connect(path) as database:
            found = database.execute("SELECT json_extract(body, '$.revision') FROM meta").fetchone()
        database.close()
        return int(found[0]) if found else 0
    return 0


def test_it_starts_from_the_snapshot_says_so_and_catches_up(serve: Serve, store: Store) -> None:
    first = serve(*store.flags).ready()
    version = first.classify().json()["version"]
    revision = int(first.classify().headers["X-Store-Revision"].rpartition(":")[2])
    first.wait_for(lambda: saved_revision(store) >= revision)
    first.process.kill()  # no orderly end: what is on the disk has to do
    first.exit_code()
    store.take_away()

    server = serve(*store.flags).ready()
    assert server.events("serving_snapshot")[0]["tasks"] == 1
    answer = server.classify()
    assert (answer.status_code, answer.json()["version"]) == (200, version)
    assert source(server) == "snapshot"
    metrics = httpx.get(f"{server.admin_url}/metrics").text
    assert "promptmux_serving_snapshot 1.0" in metrics
    assert f"promptmux_store_revision {float(revision)}" in metrics
    refused = upload(server)
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert int(refused.headers["Retry-After"]) >= 1

    store.put_back()
    server.wait_for(lambda: bool(server.events("store_back")))
    assert source(server) == "store"
    receipt = upload(server)
    assert receipt.status_code == 201
    wanted = receipt.headers["X-Store-Revision"]
    answer = server.classify(version=version_of(BETTER), min_revision=wanted)
    assert (answer.status_code, answer.json()["version"]) == (200, version_of(BETTER))


def test_a_store_that_goes_away_takes_no_task_with_it(serve: Serve, store: Store) -> None:
    server = serve(*store.flags, "--prompt-cache-bytes", "0", "--host-cache-bytes", "0").ready()
    version = server.classify().json()["version"]
    files = store.folder.parent / "cache" / "prompts"
    server.wait_for(lambda: (files / f"{version}.safetensors").exists())
    store.take_away()
    server.wait_for(lambda: bool(server.events("store_sync_failed")))
    assert [server.classify().status_code for _ in range(20)] == [200] * 20
    assert upload(server).status_code == 503
    store.put_back()
    server.wait_for(lambda: upload(server).status_code == 201)


def test_altered_copies_on_the_disk_are_not_served(serve: Serve, store: Store) -> None:
    server = serve(*store.flags, "--prompt-cache-bytes", "0", "--host-cache-bytes", "0").ready()
    answer = server.classify().json()
    path = store.folder.parent / "cache" / "prompts" / f"{answer['version']}.safetensors"
    server.wait_for(path.exists)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = server.classify()
    assert (again.status_code, again.json()["data"]) == (200, answer["data"])
    assert 'promptmux_tier_corrupt_total{tier="disk"} 1.0' in httpx.get(f"{server.admin_url}/metrics").text
