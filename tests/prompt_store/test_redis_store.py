"""What only the store in Redis has: receipts by its settings, and errors that say what to do."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loadtest.faults.redis_process import RedisProcess
from prompt_store import Durability, StoreUnavailable, Target
from tests.prompt_store.redis_parts import opened, raw_info, until


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
