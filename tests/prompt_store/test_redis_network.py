"""The way to Redis: hangs, breaks, restarts, failover by Sentinels, TLS."""

import asyncio
import itertools
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from loadtest.faults.fault_proxy import FaultProxy, Mode
from loadtest.faults.redis_process import RedisProcess, start_sentinel
from loadtest.ports import free_port
from prompt_store import PromptStore, Revision, StoreUnavailable, open_store
from prompt_store.redis_connection import RedisConnection
from prompt_store.redis_url import parse_redis_url
from tests.prompt_store.redis_parts import opened, raw_info, until


async def test_a_redis_that_hangs_is_given_up(own: RedisProcess, build: Any) -> None:
    async with opened(f"{own.url}?timeout=0.3") as store, opened(f"{own.url}?timeout=60") as patient:
        version = (await patient.publish(build.prompt())).version
        own.pause()
        try:
            for call in (
                store.get("sentiment", version),
                store.publish(build.prompt(seed=1)),
                store.revision(),
            ):
                async with asyncio.timeout(60):
                    with pytest.raises(StoreUnavailable, match="in time"):
                        await call
        finally:
            own.resume()
        assert await patient.get("sentiment", version) == build.prompt()


async def test_a_cancelled_call_leaves_no_answer_for_the_next(own: RedisProcess, build: Any) -> None:
    """An answer that is still on its way must not be taken for that of another call (CVE-2023-28858)."""
    files = {task: build.prompt(task) for task in ("a", "b", "c", "d")}
    async with FaultProxy("127.0.0.1", own.port, delay=0.005) as proxy:
        proxy.mode = Mode.LATENCY
        async with opened(f"redis://127.0.0.1:{proxy.port}") as store:
            versions = {task: (await store.publish(data)).version for task, data in files.items()}
            for turn in range(40):
                task = "abcd"[turn % 4]
                call = asyncio.create_task(store.get(task, versions[task]))
                await asyncio.sleep(0.0005 * turn)
                call.cancel()
                results = await asyncio.gather(*(store.get(t, versions[t]) for t in "abcd"))
                assert results == [files[t] for t in "abcd"]
                await asyncio.gather(call, return_exceptions=True)


async def test_a_read_over_a_network_that_broke_without_a_word_is_answered_soon_after_it_heals(
    own: RedisProcess, build: Any
) -> None:
    async with (
        FaultProxy("127.0.0.1", own.port) as proxy,
        opened(f"redis://127.0.0.1:{proxy.port}?timeout=600") as store,
    ):
        published = await store.publish(build.prompt())
        proxy.mode = Mode.BLACKHOLE
        reads = [
            asyncio.create_task(call)
            for call in (
                store.task("sentiment"),
                store.get("sentiment", published.version),
                store.history("sentiment"),
                store.revision(),
            )
        ]
        await asyncio.sleep(1.3)  # so that each has a dead connection, and a second one
        assert not any(read.done() for read in reads)
        proxy.mode = Mode.PASS
        async with asyncio.timeout(60):
            await asyncio.gather(*reads)


async def test_a_slow_network_is_slow_and_no_more(own: RedisProcess, build: Any) -> None:
    async with (
        FaultProxy("127.0.0.1", own.port, delay=1.5) as proxy,  # a question is asked again after one second
        opened(f"redis://127.0.0.1:{proxy.port}?timeout=600") as store,
    ):
        published = await store.publish(build.prompt())
        proxy.mode = Mode.LATENCY
        assert await store.revision() == published.revision
        assert (await store.publish(build.prompt(seed=1))).created


async def test_a_restarted_redis_is_found_again(own: RedisProcess, build: Any) -> None:
    async with opened(own.url) as store:
        published = await store.publish(build.prompt())
        own.kill()
        with pytest.raises(StoreUnavailable):
            await store.revision()
        own.start()
        assert await store.revision() == published.revision
        assert await store.get("sentiment", published.version) == build.prompt()
        assert (await store.publish(build.prompt(seed=1))).revision.number == 2


async def test_a_question_that_fails_while_another_hangs_is_not_asked_without_pause(
    own: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = RedisConnection(parse_redis_url(own.url))
    asked: list[float] = []
    often = asyncio.Event()

    async def ask() -> int:
        asked.append(time.monotonic())
        if len(asked) == 5:
            often.set()
        if len(asked) > 1:
            raise RedisConnectionError("refused")
        await asyncio.sleep(3600)
        return 0

    monkeypatch.setattr("prompt_store.redis_connection._AGAIN_SECONDS", 0.05)
    asking = asyncio.create_task(connection._first_of(ask))
    async with asyncio.timeout(60):
        await often.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert all(later - sooner > 0.04 for sooner, later in itertools.pairwise(asked))
    await connection.aclose()


async def test_a_failover_by_sentinel_is_followed(own: RedisProcess, tmp_path: Path, build: Any) -> None:
    folders = {name: tmp_path / name for name in ("replica", "sentinel")}
    for folder in folders.values():
        folder.mkdir()
    with (
        RedisProcess(folders["replica"], replicaof=f"127.0.0.1 {own.port}") as replica,
        start_sentinel(folders["sentinel"], own.port) as sentinel,
    ):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster?replicas=1&replicas_timeout=5"
        async with opened(url) as store:
            await until(lambda: b"master_link_status:up" in raw_info(replica))
            before = await store.publish(build.prompt())
            assert before.durability.replicas == 1
            await until(lambda: knows(sentinel))
            own.kill()
            deadline = time.monotonic() + 120
            while True:
                try:
                    after = await store.publish(build.prompt(seed=1))
                    break
                except StoreUnavailable:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.2)
            assert after.revision == Revision(before.revision.epoch, 2)
            assert await store.get("sentiment", before.version) == build.prompt()
            assert not (await store.watch(before.revision, timeout=0)).reset


def knows(sentinel: RedisProcess) -> bool:
    """Whether the Sentinel knows of the replica."""
    return bool(sentinel.run("SENTINEL", "REPLICAS", "mymaster"))


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """The files of a certificate for 127.0.0.1 that signed itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on the PATH to make a certificate with")
    files = {"key": str(tmp_path / "key.pem"), "cert": str(tmp_path / "cert.pem")}
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", files["key"], "-out", files["cert"]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


async def test_over_tls(own: RedisProcess, certificate: dict[str, str], build: Any) -> None:
    port = free_port()
    settings = {
        "tls-cert-file": certificate["cert"],
        "tls-key-file": certificate["key"],
        "tls-ca-cert-file": certificate["cert"],
        "tls-auth-clients": "no",
        "tls-port": str(port),
    }
    try:
        for name, value in settings.items():
            own.run("CONFIG", "SET", name, value)
    except ResponseError:
        pytest.skip("this redis-server was built without TLS")
    async with opened(f"rediss://127.0.0.1:{port}?ca={certificate['cert']}") as store:
        assert (await store.publish(build.prompt())).created
    async with opened(f"rediss://127.0.0.1:{port}") as stranger:
        with pytest.raises(StoreUnavailable):
            await stranger.revision()


async def test_many_stores_make_a_new_place_once(own: RedisProcess) -> None:
    stores: list[PromptStore] = [open_store(own.url) for _ in range(10)]
    assert len(set(await asyncio.gather(*(store.revision() for store in stores)))) == 1
    await asyncio.gather(*(store.aclose() for store in stores))
