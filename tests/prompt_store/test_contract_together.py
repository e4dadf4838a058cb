"""The contract of every backend: several stores on one place, collections, closing."""

import asyncio
from typing import Any

import pytest

from prompt_store import (
    PromptStore,
    PromptStoreError,
    StoreUnavailable,
    Target,
    version_of,
)


async def test_collect_takes_only_what_no_version_needs(store: PromptStore, build: Any) -> None:
    kept = await store.publish(build.prompt())
    for seed in (1, 2):
        gone = await store.publish(build.prompt(seed=seed))
        await store.delete_version("sentiment", gone.version)
    await store.publish(build.prompt("other"))
    await store.delete_task("other")
    assert (await store.collect(grace=3600)).blobs == 0
    before = await store.revision()
    collected = await store.collect(grace=0)
    assert (collected.blobs, collected.bytes) == (3, 2 * len(build.prompt()) + len(build.prompt("other")))
    assert await store.revision() == before
    assert (await store.collect(grace=0)).blobs == 0
    assert await store.get("sentiment", kept.version) == build.prompt()
    assert (await store.publish(build.prompt(seed=1))).created is True
    assert await store.get("sentiment", version_of(build.prompt(seed=1))) == build.prompt(seed=1)


async def test_collections_beside_publishes_lose_nothing(
    backend: Any, store: PromptStore, build: Any
) -> None:
    """The same versions are published, deleted and published again while another store collects."""
    files = [build.prompt(seed=seed) for seed in range(4)]
    other = backend.open()

    async def churn(data: bytes) -> None:
        for _ in range(8):
            published = await store.publish(data)
            assert await store.get("sentiment", published.version) == data
            await store.delete_version("sentiment", published.version)
        await store.publish(data)

    async def collect() -> None:
        while True:
            await other.collect(grace=0)

    collector = asyncio.create_task(collect())
    await asyncio.gather(*map(churn, files))
    collector.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collector
    for data in files:
        assert await store.get("sentiment", version_of(data)) == data
    await other.aclose()


async def test_two_stores_on_one_place_see_the_same(backend: Any, store: PromptStore, build: Any) -> None:
    other = backend.open()
    both = await asyncio.gather(
        *(each.publish(build.prompt(seed=seed)) for each in (store, other) for seed in range(5))
    )
    assert sum(published.created for published in both) == 5
    assert await store.task("sentiment") == await other.task("sentiment")
    assert (await store.revision()).number == 5
    await other.aclose()


async def test_what_was_written_is_there_when_opened_again(backend: Any, build: Any) -> None:
    first = backend.open()
    version = (await first.publish(build.prompt())).version
    await first.set_alias("sentiment", "current", [Target(version)], expected_revision=0)
    before = await first.list(), await first.history("sentiment")
    await first.aclose()
    second = backend.open()
    assert (await second.list(), await second.history("sentiment")) == before
    assert await second.get("sentiment", version) == build.prompt()
    await second.aclose()


async def test_a_closed_store_says_so(backend: Any, build: Any) -> None:
    store: PromptStore = backend.open()
    now = (await store.publish(build.prompt())).revision
    watcher = asyncio.create_task(store.watch(now, timeout=600))
    await asyncio.sleep(0.01)
    await store.aclose()
    await store.aclose()
    for call in (
        watcher,
        store.publish(build.prompt()),
        store.list(),
        store.revision(),
        store.collect(grace=0),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call


async def test_closing_an_unused_store_is_fine(backend: Any) -> None:
    store: PromptStore = backend.open()
    await store.aclose()
    with pytest.raises(PromptStoreError):
        await store.revision()
