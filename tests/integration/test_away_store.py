"""A server process whose store goes away, while it runs and while it starts. The stores are real: a folder, in whose
place a file stands while it is away, and a Redis that is stopped and started.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtest.faults.redis_process import RedisProcess
from prompt_store import version_of
from tests.integration.conftest import PATIENCE, Serve, ServerProcess
from tests.server.fakes import prompt_bytes

BETTER = prompt_bytes(favours=1)
SMALL = ("--prompt-cache-bytes", "0", "--host-cache-bytes", "0")  # every request reads the disk


class FolderPlace:
    """A store in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "store"
        self.url = f"file://{self._folder}"

    def take_away(self) -> None:
        self._folder.rename(self._folder.with_name("elsewhere"))
        self._folder.write_text("")

    def put_back(self) -> None:
        self._folder.unlink()
        self._folder.with_name("elsewhere").rename(self._folder)


class RedisPlace:
    """A store in a Redis."""

    def __init__(self, redis: RedisProcess) -> None:
        self.redis, self.url = redis, f"{redis.url}?timeout=0.5"
        self.take_away, self.put_back = redis.stop, redis.start


class Store:
    """A store that can be taken away, and the flags of its servers."""

    def __init__(self, place: FolderPlace | RedisPlace, cache: Path) -> None:
        self.take_away, self.put_back = place.take_away, place.put_back
        self.cache = cache
        self.flags = ("--store", place.url, "--cache-dir", str(cache))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as running:
        yield running


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    place = FolderPlace(tmp_path) if request.param == "file" else RedisPlace(request.getfixturevalue("redis"))
    return Store(place, tmp_path / "cache")


def upload(server: ServerProcess) -> httpx.Response:
    path = f"/admin/tasks/sentiment/versions/{version_of(BETTER)}"
    headers = {"Content-Type": "application/octet-stream"}
    return httpx.put(server.admin_url + path, content=BETTER, headers=headers, timeout=PATIENCE)


def source(server: ServerProcess) -> str:
    return str(httpx.get(f"{server.url}/readyz").json()["store"]["source"])


def saved_revision(store: Store) -> int:
    """What the snapshot on the disk has."""
    for path in store.cache.glob("catalogue-*.sqlite3"):
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
    server = serve(*store.flags, *SMALL).ready()
    version = server.classify().json()["version"]
    files = store.cache / "prompts"
    server.wait_for(lambda: (files / f"{version}.safetensors").exists())
    store.take_away()
    server.wait_for(lambda: bool(server.events("store_sync_failed")))
    assert [server.classify().status_code for _ in range(20)] == [200] * 20
    assert upload(server).status_code == 503
    store.put_back()
    server.wait_for(lambda: upload(server).status_code == 201)


def test_altered_copies_on_the_disk_are_not_served(serve: Serve, store: Store) -> None:
    server = serve(*store.flags, *SMALL).ready()
    answer = server.classify().json()
    path = store.cache / "prompts" / f"{answer['version']}.safetensors"
    server.wait_for(path.exists)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = server.classify()
    assert (again.status_code, again.json()["data"]) == (200, answer["data"])
    assert 'promptmux_tier_corrupt_total{tier="disk"} 1.0' in httpx.get(f"{server.admin_url}/metrics").text


def test_a_store_that_hangs_takes_no_task_with_it(serve: Serve, redis: RedisProcess, tmp_path: Path) -> None:
    store = Store(RedisPlace(redis), tmp_path / "cache")
    server = serve(*store.flags, *SMALL).ready()
    version = server.classify().json()["version"]
    server.wait_for((store.cache / "prompts" / f"{version}.safetensors").exists)
    redis.pause()
    assert [server.classify().status_code for _ in range(50)] == [200] * 50
    assert upload(server).status_code == 503
    redis.resume()
    server.wait_for(lambda: upload(server).status_code == 201)


def test_what_one_replica_took_another_one_answers_with(
    serve: Serve, redis: RedisProcess, tmp_path: Path
) -> None:
    one, two = (serve(*Store(RedisPlace(redis), tmp_path / name).flags).ready() for name in ("one", "two"))
    for favours in (1, 0, 1, 0):
        data = prompt_bytes(favours=favours, bias=3.0)
        path = f"{one.admin_url}/admin/tasks/sentiment"
        headers = {"Content-Type": "application/octet-stream"}
        put = httpx.put(
            f"{path}/versions/{version_of(data)}", content=data, headers=headers, timeout=PATIENCE
        )
        tag = httpx.get(f"{path}/aliases/current").headers["etag"]
        moved = httpx.put(
            f"{path}/aliases/current",
            json={"version": version_of(data)},
            headers={"If-Match": tag},
            timeout=PATIENCE,
        )
        assert (put.is_success, moved.status_code) == (True, 200)
        answer = two.classify(min_revision=moved.headers["X-Store-Revision"])
        assert (answer.status_code, answer.json()["version"]) == (200, version_of(data))


def test_an_emptied_redis_takes_no_task_away_not_even_over_a_restart(
    serve: Serve, redis: RedisProcess, tmp_path: Path
) -> None:
    store = Store(RedisPlace(redis), tmp_path / "cache")
    server = serve(*store.flags).ready()
    upload(server)
    path = f"{server.admin_url}/admin/tasks/sentiment/aliases/current"
    tag = httpx.get(path).headers["etag"]
    moved = httpx.put(path, json={"version": version_of(BETTER)}, headers={"If-Match": tag}, timeout=PATIENCE)
    revision = int(moved.headers["X-Store-Revision"].rpartition(":")[2])
    server.wait_for(lambda: saved_revision(store) >= revision)
    redis.run("FLUSHALL")
    server.wait_for(lambda: bool(server.events("store_history_lost")))
    assert server.classify().json()["version"] == version_of(BETTER)
    server.process.terminate()
    assert server.exit_code() == 0

    # The seed is not published anew: it would be another `current`, and nobody asked for that.
    again = serve(*store.flags).ready()
    answer = again.classify()
    assert (answer.status_code, answer.json()["version"]) == (200, version_of(BETTER))
    task = httpx.get(f"{again.admin_url}/admin/tasks/sentiment").json()
    assert task["missing_in_store"]
