"""What only the store in Redis has: receipts by its settings, errors that say what to do, lost history, Sentinels."""

import asyncio
import contextlib
import itertools
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from loadtest.faults.fault_proxy import FaultProxy, Mode
from loadtest.faults.redis_process import RedisProcess, start_sentinel
from loadtest.ports import free_port
from prompt_store import (
    CorruptVersion,
    Durability,
    PromptStore,
    PromptStoreError,
    Revision,
    StoreUnavailable,
    Target,
    UnknownVersion,
    open_store,
)
from prompt_store.redis_connection import RedisConnection
from prompt_store.redis_url import parse_redis_url

DAMAGED_FIELDS = [
    ("a:current", "nonsense"),
    ("a:current", "x []"),
    ("v:" + "0" * 64, "nonsense"),
    ("v:" + "0" * 64, '1 9 {"published_at": null, "method": "m", "labels": 2}'),
    ("v:" + "0" * 64, '1 9 {"published_at": 1, "method": null, "labels": 2}'),
    ("v:" + "0" * 64, '1 9 {"published_at": 1, "method": "m", "labels": true}'),
    ("v:" + "0" * 64, "1 9 " + "[" * 100_000),
    ("v:x", '1 9 {"published_at": 1, "method": "m", "labels": 2}'),
]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis of the test's own, to do as it likes with."""
    (tmp_path / "redis").mkdir()
    with RedisProcess(tmp_path / "redis") as running:
        yield running


@contextlib.asynccontextmanager
async def opened(url: str) -> Any:
    store = open_store(url)
    try:
        yield store
    finally:
        await store.aclose()


async def test_a_receipt_says_what_redis_promised(own: RedisProcess, build: Any) -> None:
    async with opened(own.url) as store:
        for seed, (settings, fsync) in enumerate(
            [
                ({}, "always"),
                ({"appendfsync": "everysec"}, "everysec"),
                ({"appendfsync": "no"}, "no"),
                ({"appendfsync": "always", "no-appendfsync-on-rewrite": "yes"}, "no"),
                ({"appendonly": "no"}, "off"),
            ]
        ):
            for name, value in settings.items():
                own.run("CONFIG", "SET", name, value)
            published = await store.publish(build.prompt(seed=seed))
            assert published.durability == Durability(fsync)
            assert published.durability.durable == (fsync == "always")


async def test_a_receipt_counts_the_replicas_that_confirmed(
    own: RedisProcess, tmp_path: Path, build: Any
) -> None:
    folder = tmp_path / "replica"
    folder.mkdir()
    async with opened(f"{own.url}?replicas=1&replicas_timeout=5") as store:
        own.run("CONFIG", "SET", "appendonly", "no")
        own.run("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        with RedisProcess(folder, replicaof=f"127.0.0.1 {own.port}") as replica:
            await until(lambda: b"master_link_status:up" in raw_info(replica))
            confirmed = await store.publish(build.prompt())
            assert confirmed.durability == Durability("off", replicas=1)
            assert confirmed.durability.durable
            replica.kill()
        await store.aclose()
    async with opened(f"{own.url}?replicas=1&replicas_timeout=0.05") as store:
        alone = await store.publish(build.prompt(seed=1))
        assert alone.durability == Durability("off", replicas=0)
        assert not alone.durability.durable


def raw_info(redis: RedisProcess) -> bytes:
    info = redis.run("INFO", "replication")
    return info if isinstance(info, bytes) else "\n".join(f"{k}:{v}" for k, v in info.items()).encode()


async def until(holds: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_user_without_config_gets_unknown(own: RedisProcess, build: Any) -> None:
    own.run("ACL", "SETUSER", "app", "on", ">pw", "~promptmux:*", "&promptmux:*", "+@all", "-config")
    async with opened(own.url.replace("://", "://app:pw@")) as store:
        assert (await store.publish(build.prompt())).durability == Durability("unknown")


@pytest.mark.parametrize(
    ("breaks", "mends", "advice"),
    [
        (["CONFIG SET maxmemory 1"], ["CONFIG SET maxmemory 0"], "raise its maxmemory"),
        (["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"], "name the primary"),
        (["CONFIG SET min-replicas-to-write 1"], ["CONFIG SET min-replicas-to-write 0"], "too few replicas"),
    ],
)
async def test_a_redis_that_takes_no_writes_says_what_to_do_and_changes_nothing(
    own: RedisProcess, build: Any, breaks: list[str], mends: list[str], advice: str
) -> None:
    async with opened(own.url) as store:
        version = (await store.publish(build.prompt())).version
        alias = (await store.set_alias("sentiment", "current", [Target(version)], expected_revision=0)).alias
        before = await store.list()
        for command in breaks:
            own.run(*command.split())
        for write in (
            store.publish(build.prompt(seed=1)),
            store.set_alias("sentiment", "current", [Target(version)], expected_revision=alias.revision),
            store.delete_alias("sentiment", "current", expected_revision=alias.revision),
            store.delete_task("sentiment", force=True),
        ):
            with pytest.raises(StoreUnavailable, match=advice) as caught:
                await write
            assert caught.value.retry_after > 0
        assert await store.get("sentiment", version) == build.prompt()
        assert await store.list() == before
        for command in mends:
            own.run(*command.split())
        assert (await store.publish(build.prompt(seed=1))).created


async def test_a_user_without_the_channel_writes_all_the_same(own: RedisProcess, build: Any) -> None:
    # The usual new user since Redis 7: keys and commands, and no channel, as nobody named one.
    own.run("ACL", "SETUSER", "ann", "on", ">pw", "resetchannels", "~promptmux:*", "+@all")
    async with opened(own.url.replace("//", "//ann:pw@")) as store:
        published = await store.publish(build.prompt())
        assert published.created
        assert published.revision == await store.revision()
        assert [one.version for one in (await store.task("sentiment")).versions] == [published.version]


async def test_a_user_who_may_not_call_what_a_script_calls_is_told_so(own: RedisProcess, build: Any) -> None:
    own.run("ACL", "SETUSER", "ann", "on", ">pw", "allkeys", "allchannels", "+@all", "-hmget")
    async with opened(own.url.replace("//", "//ann:pw@")) as store:
        with pytest.raises(StoreUnavailable, match="access list"):
            await store.publish(build.prompt())
    assert own.run("DBSIZE") == 0


async def test_a_wrong_password_and_none_say_so(own: RedisProcess) -> None:
    own.run("CONFIG", "SET", "requirepass", "right")
    for login, advice in (
        ("", "password"),
        (":wrong@", "user or password"),
        ("nobody:wrong@", "user or password"),
    ):
        async with opened(own.url.replace("://", f"://{login}")) as store:
            with pytest.raises(StoreUnavailable, match=advice) as caught:
                await store.revision()
            assert "wrong" not in str(caught.value)


async def test_nobody_there_says_so(tmp_path: Path) -> None:
    async with opened("redis://127.0.0.1:1") as store:
        with pytest.raises(StoreUnavailable, match="check that it runs"):
            await store.revision()
    async with opened("redis+sentinel://127.0.0.1:1/mymaster") as store:
        with pytest.raises(StoreUnavailable, match="Sentinels"):
            await store.revision()


async def test_a_file_for_tls_is_blamed_only_where_there_is_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(f"rediss://127.0.0.1:1?ca={tmp_path / 'none.pem'}") as store:
        with pytest.raises(StoreUnavailable, match="a file for TLS cannot be read"):
            await store.revision()

    async def barred(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(asyncio, "open_connection", barred)
    async with opened("redis://127.0.0.1:1") as store:
        with pytest.raises(StoreUnavailable, match="check its firewall"):
            await store.revision()


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


async def test_a_redis_that_came_back_without_its_end_is_told_by_watch(
    own: RedisProcess, tmp_path: Path, build: Any
) -> None:
    """The numbers go on from the older state: only the marks show that 3 is not the 3 that was seen."""
    async with opened(own.url) as store, opened(own.url) as other:
        await store.publish(build.prompt())
        own.run("CONFIG", "SET", "appendonly", "no")  # from here on nothing is kept
        await store.publish(build.prompt(seed=1))
        seen = (await store.publish(build.prompt(seed=2))).revision
        own.kill()
        own.start()
        for seed in (3, 4, 5):
            await other.publish(build.prompt(seed=seed))
        changes = await store.watch(seen, timeout=0)
        assert changes.reset
        assert changes.revision == Revision(seen.epoch, 4)


async def came_back_older(own: RedisProcess, store: PromptStore, other: PromptStore, build: Any) -> Revision:
    """What `store` had seen of a Redis that has since lost its end; `other` has written on to the same number."""
    await store.publish(build.prompt())
    own.run("CONFIG", "SET", "appendonly", "no")
    seen = (await store.publish(build.prompt(seed=1))).revision
    own.kill()
    own.start()
    await other.publish(build.prompt(seed=2))
    return seen


async def test_an_operators_look_does_not_hide_that_history_was_lost(own: RedisProcess, build: Any) -> None:
    async with opened(own.url) as store, opened(own.url) as other:
        seen = await came_back_older(own, store, other, build)
        assert await store.revision() == seen  # the number, of another change
        await store.list()
        assert (await store.watch(seen, timeout=0)).reset


async def test_lost_history_is_told_until_the_caller_goes_on_from_the_new_one(
    own: RedisProcess, build: Any
) -> None:
    """Whoever is told lists the store anew, and asks again when that failed."""
    async with opened(own.url) as store, opened(own.url) as other:
        seen = await came_back_older(own, store, other, build)
        for _ in range(2):
            changes = await store.watch(seen, timeout=0)
            assert changes.reset
            assert await store.revision() == changes.revision == seen
        assert not (await store.watch(changes.revision, timeout=0)).reset
        later = (await other.publish(build.prompt(seed=3))).revision
        assert (await store.watch(seen, timeout=0)).reset
        changes = await store.watch(changes.revision, timeout=5)
        assert (changes.reset, changes.revision, changes.tasks) == (False, later, ("sentiment",))


async def test_a_flushed_redis_is_a_new_epoch(own: RedisProcess, build: Any) -> None:
    async with opened(own.url) as store:
        seen = (await store.publish(build.prompt())).revision
        own.run("FLUSHALL")
        changes = await store.watch(seen, timeout=5)
        assert changes.reset
        assert changes.revision.epoch != seen.epoch
        published = await store.publish(build.prompt())
        assert published.created
        assert published.revision == Revision(changes.revision.epoch, 1)


async def test_a_store_whose_own_hash_was_lost_numbers_nothing_again(own: RedisProcess, build: Any) -> None:
    async with opened(own.url) as store:
        for seed in range(3):
            await store.publish(build.prompt(seed=seed))
        own.run("DEL", "promptmux:store")
        assert (await store.publish(build.prompt(seed=3))).revision.number == 4


async def test_another_schema_is_refused(own: RedisProcess, build: Any) -> None:
    async with opened(own.url) as store:
        await store.publish(build.prompt())
        own.run("HSET", "promptmux:store", "schema", "2")
        for call in (
            store.revision(),
            store.publish(build.prompt(seed=1)),
            store.list(),
            store.task("sentiment"),
        ):
            with pytest.raises(PromptStoreError, match="another prefix"):
                await call


async def test_two_prefixes_are_two_stores(own: RedisProcess, build: Any) -> None:
    async with opened(f"{own.url}?prefix=a:") as one, opened(f"{own.url}?prefix=b:") as two:
        await one.publish(build.prompt())
        assert (await two.list()).tasks == ()
        assert {key.split(b":")[0] for key in own.run("KEYS", "*")} == {b"a", b"b"}


async def test_a_hint_wakes_a_watcher_before_its_next_look(
    own: RedisProcess, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(own.url) as store, opened(own.url) as other:
        now = (await store.publish(build.prompt())).revision
        while not own.run("PUBSUB", "CHANNELS"):  # until the subscription stands
            await store.watch(now, timeout=0.2)
        monkeypatch.setattr("prompt_store.redis_store.POLL_SECONDS", 3600.0)
        watcher = asyncio.create_task(store.watch(now, timeout=3600))
        await asyncio.sleep(0.05)
        await other.publish(build.prompt(seed=1))
        async with asyncio.timeout(30):
            assert (await watcher).tasks == ("sentiment",)


async def test_a_watcher_that_was_away_for_many_changes_is_told_of_no_loss(
    own: RedisProcess, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark of its revision is forgotten by then: that says nothing."""
    async with opened(own.url) as store, opened(own.url) as other:
        seen = (await store.publish(build.prompt())).revision
        await other.publish(build.prompt("other"))
        own.run("HINCRBY", "promptmux:store", "revision", "20000")
        own.run("HDEL", "promptmux:marks", str(seen.number))
        changes = await store.watch(seen, timeout=0)
        assert not changes.reset
        assert changes.tasks == ("other",)


async def test_a_loss_that_is_met_by_a_write_of_our_own_is_told_all_the_same(
    own: RedisProcess, build: Any
) -> None:
    async with opened(own.url) as store:
        await store.publish(build.prompt())
        own.run("CONFIG", "SET", "appendonly", "no")
        seen = (await store.publish(build.prompt(seed=1))).revision
        own.kill()
        own.start()
        assert (await store.publish(build.prompt(seed=2))).revision == seen  # the number, of another change
        assert (await store.watch(seen, timeout=0)).reset


async def test_a_damaged_record_is_told_with_its_task(own: RedisProcess, build: Any) -> None:
    async with opened(own.url) as store:
        await store.publish(build.prompt())
        await store.publish(build.prompt("whole"))
        for field, text in DAMAGED_FIELDS:
            own.run("HSET", "promptmux:task:sentiment", field, text)
            with pytest.raises(PromptStoreError, match="record of task sentiment is damaged"):
                await store.task("sentiment")
            page = await store.list()
            assert [task.task_id for task in page.tasks] == ["whole"]
            assert page.unreadable == ("sentiment",)
            own.run("HDEL", "promptmux:task:sentiment", field)
        assert (await store.task("sentiment")).aliases == {}


@pytest.mark.parametrize("text", ["nonsense", "1 x {}", "1 9 {", "1 9 []", '1 9 {"published_at":1}', ""])
async def test_publishing_again_mends_a_version_whose_record_does_not_parse(
    own: RedisProcess, build: Any, text: str
) -> None:
    async with opened(own.url) as store:
        version = (await store.publish(build.prompt())).version
        own.run("HSET", "promptmux:task:sentiment", f"v:{version}", text)
        assert (await store.publish(build.prompt())).revision.number == 2
        assert [one.version for one in (await store.task("sentiment")).versions] == [version]
        assert await store.get("sentiment", version) == build.prompt()
        assert (await store.publish(build.prompt())).revision.number == 2  # whole again: nothing to do


async def test_a_large_version_is_read_in_pieces(
    own: RedisProcess, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question is asked again each second: that must not be the whole of a large version."""
    monkeypatch.setattr("prompt_store.redis_store._PIECE_BYTES", 100)
    data = build.prompt()
    async with opened(own.url) as store:
        version = (await store.publish(data)).version
        pieces: list[bytes] = []
        send = RedisConnection._send

        async def noted(self: RedisConnection, *arguments: Any) -> list[Any]:
            results = await send(self, *arguments)
            pieces.append(results[0][1])
            return results

        monkeypatch.setattr(RedisConnection, "_send", noted)
        assert await store.get("sentiment", version) == data
        assert b"".join(pieces) == data
        assert {len(piece) for piece in pieces[:-1]} == {100}

        async def deleted(self: RedisConnection, *arguments: Any) -> list[Any]:
            results = await send(self, *arguments)
            own.run("HSET", "promptmux:task:sentiment", f"v:{version}", "")
            return results

        monkeypatch.setattr(RedisConnection, "_send", deleted)
        with pytest.raises(UnknownVersion):
            await store.get("sentiment", version)


async def test_a_large_publish_is_given_the_time_to_be_sent(
    own: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    in_time = RedisConnection._in_time

    def noted(self: RedisConnection, seconds: float) -> Any:
        given.append(seconds)
        return in_time(self, seconds)

    monkeypatch.setattr(RedisConnection, "_in_time", noted)
    connection = RedisConnection(parse_redis_url(f"{own.url}?timeout=4&replicas=1&replicas_timeout=0.5"))
    await connection.tell("task", "epoch", "sentiment", bytes(3 * 2**20))
    await connection.ask("task", "epoch", "sentiment")
    assert given == [7.5, 4.0]
    await connection.aclose()


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


async def test_a_forged_blob_is_refused(own: RedisProcess, build: Any) -> None:
    """Another valid prompt of the same length under this version's name."""
    async with opened(own.url) as store:
        version = (await store.publish(build.prompt())).version
        other = build.prompt(seed=1)
        assert len(other) == len(build.prompt())
        own.run("SET", f"promptmux:blob:{version}", other)
        with pytest.raises(CorruptVersion):
            await store.get("sentiment", version)
        assert (await store.publish(build.prompt())).created is False
        assert await store.get("sentiment", version) == build.prompt()


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
