"""A store in Redis that lost some of its history, was flushed or is another's: told, and no number given twice."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loadtest.faults.redis_process import RedisProcess
from prompt_store import PromptStore, PromptStoreError, Revision
from tests.prompt_store.redis_parts import opened


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
