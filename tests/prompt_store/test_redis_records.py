"""Records and bytes in Redis: damaged ones, forged ones, large ones."""

from typing import Any

import pytest

from loadtest.faults.redis_process import RedisProcess
from prompt_store import CorruptVersion, PromptStoreError, UnknownVersion
from prompt_store.redis_connection import RedisConnection
from prompt_store.redis_url import parse_redis_url
from tests.prompt_store.redis_parts import opened

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
