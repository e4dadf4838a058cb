"""The contract of every backend: reads: list, history, watch."""

import asyncio
from typing import Any

import pytest

from prompt_store import (
    PromptStore,
    Revision,
    Target,
)


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 100])
async def test_pages_together_are_the_whole_list(store: PromptStore, build: Any, limit: int) -> None:
    ids = sorted(["a", "a-b", "a.b", "a_b", "ab", "b"])
    for seed, task_id in enumerate(reversed(ids)):
        version = (await store.publish(build.prompt(task_id, seed))).version
        await store.set_alias(task_id, "current", [Target(version)], expected_revision=0)
    await store.publish(build.prompt("aa"))
    await store.delete_task("aa")  # a hole in the middle of a page
    listed, after, pages = [], None, 0
    while pages == 0 or after is not None:
        page = await store.list(after=after, limit=limit)
        assert len(page.tasks) <= limit
        listed += page.tasks
        after, pages = page.next, pages + 1
    assert [task.task_id for task in listed] == ids
    assert listed == [await store.task(task_id) for task_id in ids]
    assert pages == -(-len(ids) // limit)


@pytest.mark.parametrize("limit", [-1, 0, 10**30])
async def test_a_limit_out_of_range_is_the_nearest_one(store: PromptStore, build: Any, limit: int) -> None:
    await store.publish(build.prompt("a"))
    await store.publish(build.prompt("b"))
    expected = 2 if limit > 0 else 1
    assert len((await store.list(limit=limit)).tasks) == expected
    await store.publish(build.prompt("a", seed=1))
    assert len(await store.history("a", limit=limit)) == expected


async def test_history_tells_every_change_newest_first(store: PromptStore, build: Any) -> None:
    version = (await store.publish(build.prompt(), actor="anna")).version
    alias = (
        await store.set_alias("sentiment", "current", [Target(version, 2)], expected_revision=0, actor="ben")
    ).alias
    await store.publish(build.prompt("other"))
    await store.delete_alias("sentiment", "current", expected_revision=alias.revision, actor="carl")
    await store.delete_version("sentiment", version, actor="dora")
    await store.delete_task("sentiment")
    history = await store.history("sentiment")
    assert [(event.revision, event.actor, event.action, event.detail) for event in history] == [
        (6, "", "delete_task", {}),
        (5, "dora", "delete_version", {"version": version}),
        (4, "carl", "delete_alias", {"alias": "current"}),
        (2, "ben", "alias", {"alias": "current", "targets": [[version, 2]]}),
        (1, "anna", "publish", {"version": version, "method": "prompt-tuning"}),
    ]
    assert await store.history("sentiment", limit=2) == history[:2]
    assert [event.at for event in history] == sorted((event.at for event in history), reverse=True)


async def test_an_actor_may_be_any_text(store: PromptStore, build: Any) -> None:
    await store.publish(build.prompt(), actor="a\0\n\ud800'é🙂" + "x" * 10_000)
    (event,) = await store.history("sentiment")
    assert event.actor.startswith("a\0\n?'é🙂xx")
    assert len(event.actor) <= 200


async def test_watch_tells_what_changed_since(store: PromptStore, build: Any) -> None:
    start = await store.revision()
    for task_id in ("a", "b", "c"):
        await store.publish(build.prompt(task_id))
    middle = await store.revision()
    await store.delete_task("b")
    changes = await store.watch(start, timeout=600)
    assert (set(changes.tasks), len(changes.tasks), changes.reset) == ({"a", "b", "c"}, 3, False)
    assert changes.revision == await store.revision() == Revision(start.epoch, 4)
    assert (await store.watch(middle, timeout=600)).tasks == ("b",)


async def test_watch_ends_without_a_change(store: PromptStore, build: Any) -> None:
    await store.publish(build.prompt())
    now = await store.revision()
    for timeout in (0, -1, 0.25):
        changes = await store.watch(now, timeout=timeout)
        assert (changes.revision, changes.tasks, changes.reset) == (now, (), False)


async def test_watch_wakes_on_a_change_by_this_store_and_by_another(
    backend: Any, store: PromptStore, build: Any
) -> None:
    other = backend.open()
    for writer, task_id in ((store, "a"), (other, "b")):
        now = await store.revision()
        watchers = [asyncio.create_task(store.watch(now, timeout=600)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(watcher.done() for watcher in watchers)
        await writer.publish(build.prompt(task_id))
        assert {changes.tasks for changes in await asyncio.gather(*watchers)} == {(task_id,)}
    await other.aclose()


@pytest.mark.parametrize("lost", ["epoch", "number"])
async def test_watch_says_when_history_was_lost(store: PromptStore, build: Any, lost: str) -> None:
    await store.publish(build.prompt())
    now = await store.revision()
    elsewhere = Revision("another", now.number) if lost == "epoch" else Revision(now.epoch, now.number + 1)
    changes = await store.watch(elsewhere, timeout=600)
    assert (changes.revision, changes.reset) == (now, True)


async def test_the_epoch_stays_and_every_change_counts_one(
    backend: Any, store: PromptStore, build: Any
) -> None:
    version = (await store.publish(build.prompt())).version
    alias = (await store.set_alias("sentiment", "current", [Target(version)], expected_revision=0)).alias
    await store.delete_alias("sentiment", "current", expected_revision=alias.revision)
    await store.delete_version("sentiment", version)
    await store.delete_task("sentiment")
    other = backend.open()
    assert await other.revision() == await store.revision() == Revision((await store.revision()).epoch, 5)
    await other.aclose()
