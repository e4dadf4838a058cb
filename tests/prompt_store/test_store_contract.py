"""What every backend promises: the docstrings of `PromptStore`. Runs once for each of conftest's BACKENDS."""

import asyncio
from typing import Any

import pytest

from prompt_store import (
    CorruptVersion,
    DigestMismatch,
    InvalidAlias,
    InvalidPrompt,
    InvalidTaskId,
    PromptStore,
    PromptStoreError,
    Revision,
    RevisionConflict,
    StoreUnavailable,
    Target,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
    version_of,
)

NOWHERE = "0" * 64


# ── publish and get ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_new_store_is_empty(store: PromptStore) -> None:
    page = await store.list()
    assert (page.tasks, page.next, page.revision) == ((), None, await store.revision())
    assert page.revision.number == 0
    assert page.revision.epoch


async def test_what_is_published_is_what_is_got(store: PromptStore, build: Any) -> None:
    data = build.prompt()
    published = await store.publish(data, expect_version=version_of(data), actor="anna")
    assert published.version == version_of(data)
    assert (published.task_id, published.created, published.revision.number) == ("sentiment", True, 1)
    assert await store.get("sentiment", published.version) == data
    task = await store.task("sentiment")
    (record,) = task.versions
    assert (record.version, record.size, record.method, record.labels) == (
        published.version,
        len(data),
        "prompt-tuning",
        2,
    )
    assert (task.task_id, task.aliases, task.revision) == ("sentiment", {}, 1)


async def test_versions_are_listed_newest_first(store: PromptStore, build: Any) -> None:
    versions = [(await store.publish(build.prompt(seed=seed))).version for seed in range(5)]
    assert [record.version for record in (await store.task("sentiment")).versions] == versions[::-1]


async def test_publishing_again_changes_nothing(store: PromptStore, build: Any) -> None:
    first = await store.publish(build.prompt())
    await store.publish(build.prompt(seed=1))
    before = await store.task("sentiment"), await store.history("sentiment")
    again = await store.publish(build.prompt())
    assert (again.version, again.created, again.revision.number) == (first.version, False, 2)
    assert (await store.task("sentiment"), await store.history("sentiment")) == before


async def test_bytes_of_another_version_are_refused(store: PromptStore, build: Any) -> None:
    data = build.prompt()
    with pytest.raises(DigestMismatch, match=version_of(data)):
        await store.publish(data, expect_version=NOWHERE)
    assert (await store.list()).tasks == ()


async def test_a_bad_file_is_refused_and_leaves_nothing(store: PromptStore, build: Any) -> None:
    with pytest.raises(InvalidPrompt):
        await store.publish(build.prompt()[:-1])
    assert (await store.revision()).number == 0
    assert (await store.collect(grace=0)).blobs == 0


async def test_what_is_not_there_is_unknown(store: PromptStore, build: Any) -> None:
    version = (await store.publish(build.prompt())).version
    await store.publish(build.prompt("other", seed=1))
    with pytest.raises(UnknownTask):
        await store.get("nobody", version)
    with pytest.raises(UnknownTask):
        await store.task("nobody")
    with pytest.raises(UnknownTask):
        await store.history("nobody")
    with pytest.raises(UnknownVersion):
        await store.get("sentiment", NOWHERE)
    with pytest.raises(UnknownVersion):
        await store.get("other", version)  # a version belongs to its task


@pytest.mark.parametrize(
    "version", ["", "current", "../catalogue", "0" * 63, "A" * 64, "\ud800", "\0", "0" * 99_999]
)
async def test_a_version_of_another_form_is_unknown(store: PromptStore, build: Any, version: str) -> None:
    await store.publish(build.prompt())
    with pytest.raises(UnknownVersion):
        await store.get("sentiment", version)
    with pytest.raises(UnknownVersion):
        await store.delete_version("sentiment", version)
    with pytest.raises(UnknownVersion):
        await store.set_alias("sentiment", "current", [Target(version)], expected_revision=0)


@pytest.mark.parametrize("name", ["", "A", "a/b", "../a", "a\n", "a\0", "\u0430", "\ud800", "a" * 65])
async def test_a_name_outside_the_grammar_is_refused_everywhere(
    store: PromptStore, build: Any, name: str
) -> None:
    version = (await store.publish(build.prompt())).version
    targets = [Target(version)]
    for call in (
        store.get(name, version),
        store.task(name),
        store.list(after=name),
        store.history(name),
        store.set_alias(name, "current", targets, expected_revision=0),
        store.delete_alias(name, "current", expected_revision=1),
        store.delete_version(name, version),
        store.delete_task(name, force=True),
    ):
        with pytest.raises(InvalidTaskId):
            await call
    with pytest.raises(InvalidAlias):
        await store.set_alias("sentiment", name, targets, expected_revision=0)
    with pytest.raises(InvalidAlias):
        await store.delete_alias("sentiment", name, expected_revision=1)
    assert (await store.revision()).number == 1


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["one bit", "cut", "longer", "another version", "empty", "lost"])
async def test_damaged_bytes_are_never_given_out_and_publish_puts_them_back(
    backend: Any, store: PromptStore, build: Any, how: str
) -> None:
    data = build.prompt()
    version = (await store.publish(data)).version
    damaged = {
        "one bit": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-1],
        "longer": data + b"\0",
        "another version": build.prompt(seed=1),
        "empty": b"",
        "lost": None,
    }
    backend.damage(version, damaged[how])
    with pytest.raises(CorruptVersion, match="publish it anew"):
        await store.get("sentiment", version)
    assert (await store.publish(data)).created is False
    assert await store.get("sentiment", version) == data
    assert (await store.revision()).number == 1


# ── aliases ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_alias_moves_by_compare_and_set(store: PromptStore, build: Any) -> None:
    old = Target((await store.publish(build.prompt())).version)
    new = Target((await store.publish(build.prompt(seed=1))).version, weight=3)
    first = await store.set_alias("sentiment", "current", [old], expected_revision=0)
    assert (first.name, first.targets, first.version) == ("current", (old,), old.version)
    assert first.revision > 0
    second = await store.set_alias("sentiment", "current", [new, old], expected_revision=first.revision)
    assert (second.targets, second.version) == ((new, old), None)
    assert second.revision > first.revision
    assert (await store.task("sentiment")).aliases == {"current": second}
    for stale in (first.revision, 0, second.revision + 1):
        with pytest.raises(RevisionConflict) as caught:
            await store.set_alias("sentiment", "current", [old], expected_revision=stale)
        assert caught.value.current == second.revision
    assert (await store.task("sentiment")).aliases == {"current": second}
    third = await store.set_alias("sentiment", "current", [old], expected_revision=None)
    assert third.revision > second.revision


async def test_an_alias_that_must_exist_but_does_not_conflicts(store: PromptStore, build: Any) -> None:
    target = Target((await store.publish(build.prompt())).version)
    with pytest.raises(RevisionConflict) as caught:
        await store.set_alias("sentiment", "current", [target], expected_revision=1)
    assert caught.value.current == 0


async def test_alias_revisions_are_never_used_again(store: PromptStore, build: Any) -> None:
    """Else a writer that slept through delete and create would overwrite what it never saw."""
    target = Target((await store.publish(build.prompt())).version)
    seen: list[int] = []
    for step in range(3):
        alias = await store.set_alias("sentiment", "current", [target], expected_revision=0)
        seen.append(alias.revision)
        if step == 1:
            await store.delete_task("sentiment", force=True)
            await store.publish(build.prompt())
        else:
            await store.delete_alias("sentiment", "current", expected_revision=alias.revision)
        with pytest.raises((RevisionConflict, UnknownAlias)):
            await store.delete_alias("sentiment", "current", expected_revision=alias.revision)
    assert seen == sorted(set(seen))


async def test_aliases_of_a_task_are_apart(store: PromptStore, build: Any) -> None:
    target = Target((await store.publish(build.prompt())).version)
    one = await store.set_alias("sentiment", "current", [target], expected_revision=0)
    two = await store.set_alias("sentiment", "canary", [target], expected_revision=0)
    assert (await store.task("sentiment")).aliases == {"canary": two, "current": one}
    await store.set_alias("sentiment", "current", [target], expected_revision=one.revision)
    assert (await store.task("sentiment")).aliases["canary"] == two


@pytest.mark.parametrize(
    ("weights", "same"),
    [
        ((), False),
        ((1, 1), True),
        ((0,), False),
        ((-1,), False),
        ((1_000_001,), False),
        ((True,), False),
        ((1.5,), False),
        ((1,) * 101, True),
    ],
)
async def test_targets_that_make_no_alias_are_refused(
    store: PromptStore, build: Any, weights: tuple[Any, ...], same: bool
) -> None:
    version = (await store.publish(build.prompt())).version
    with pytest.raises(InvalidAlias, match="targets: expected"):
        await store.set_alias(
            "sentiment", "current", [Target(version, weight) for weight in weights], expected_revision=0
        )
    assert same == (len(weights) > 1)
    assert (await store.task("sentiment")).aliases == {}


async def test_an_alias_leads_only_to_versions_of_its_task(store: PromptStore, build: Any) -> None:
    version = (await store.publish(build.prompt())).version
    other = (await store.publish(build.prompt("other", seed=1))).version
    for targets in ([Target(other)], [Target(version), Target(NOWHERE)]):
        with pytest.raises(UnknownVersion):
            await store.set_alias("sentiment", "current", targets, expected_revision=0)
    with pytest.raises(UnknownTask):
        await store.set_alias("nobody", "current", [Target(version)], expected_revision=0)
    assert (await store.task("sentiment")).aliases == {}


async def test_an_alias_is_deleted_by_compare_and_set(store: PromptStore, build: Any) -> None:
    target = Target((await store.publish(build.prompt())).version)
    alias = await store.set_alias("sentiment", "current", [target], expected_revision=0)
    with pytest.raises(RevisionConflict):
        await store.delete_alias("sentiment", "current", expected_revision=alias.revision + 1)
    with pytest.raises(UnknownTask):
        await store.delete_alias("nobody", "current", expected_revision=None)
    with pytest.raises(UnknownAlias):
        await store.delete_alias("sentiment", "canary", expected_revision=None)
    assert (await store.task("sentiment")).aliases == {"current": alias}
    await store.delete_alias("sentiment", "current", expected_revision=alias.revision)
    assert (await store.task("sentiment")).aliases == {}


async def test_of_many_writers_of_one_alias_one_wins(store: PromptStore, build: Any) -> None:
    target = Target((await store.publish(build.prompt())).version)
    results = await asyncio.gather(
        *(store.set_alias("sentiment", "current", [target], expected_revision=0) for _ in range(20)),
        return_exceptions=True,
    )
    winners = [result for result in results if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert sum(isinstance(result, RevisionConflict) for result in results) == 19
    assert (await store.task("sentiment")).aliases == {"current": winners[0]}


# ── deletes ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_version_with_an_alias_on_it_is_kept(store: PromptStore, build: Any) -> None:
    old = (await store.publish(build.prompt())).version
    new = (await store.publish(build.prompt(seed=1))).version
    alias = await store.set_alias("sentiment", "current", [Target(new), Target(old)], expected_revision=0)
    with pytest.raises(VersionInUse, match="current"):
        await store.delete_version("sentiment", old)
    await store.set_alias("sentiment", "current", [Target(new)], expected_revision=alias.revision)
    await store.delete_version("sentiment", old)
    assert [record.version for record in (await store.task("sentiment")).versions] == [new]
    for call in (store.get("sentiment", old), store.delete_version("sentiment", old)):
        with pytest.raises(UnknownVersion):
            await call
    assert (await store.publish(build.prompt())).created is True
    assert await store.get("sentiment", old) == build.prompt()


async def test_a_deleted_task_is_unknown_but_has_a_history(store: PromptStore, build: Any) -> None:
    version = (await store.publish(build.prompt())).version
    await store.publish(build.prompt("other"))
    alias = await store.set_alias("sentiment", "current", [Target(version)], expected_revision=0)
    with pytest.raises(VersionInUse, match="current"):
        await store.delete_task("sentiment")
    await store.delete_alias("sentiment", "current", expected_revision=alias.revision)
    await store.delete_task("sentiment", actor="ben")
    for call in (
        store.task("sentiment"),
        store.get("sentiment", version),
        store.delete_version("sentiment", version),
        store.delete_task("sentiment"),
        store.delete_alias("sentiment", "current", expected_revision=None),
        store.set_alias("sentiment", "current", [Target(version)], expected_revision=None),
    ):
        with pytest.raises(UnknownTask):
            await call
    assert [task.task_id for task in (await store.list()).tasks] == ["other"]
    latest = (await store.history("sentiment"))[0]
    assert (latest.action, latest.actor) == ("delete_task", "ben")


async def test_a_task_comes_back_with_nothing_of_its_past(store: PromptStore, build: Any) -> None:
    version = (await store.publish(build.prompt())).version
    await store.set_alias("sentiment", "current", [Target(version)], expected_revision=0)
    await store.delete_task("sentiment", force=True)
    new = await store.publish(build.prompt(seed=1))
    task = await store.task("sentiment")
    assert [record.version for record in task.versions] == [new.version]
    assert task.aliases == {}
    assert len(await store.history("sentiment")) == 4


# ── list and history ────────────────────────────────────────────────────────────────────────────────────


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
    alias = await store.set_alias(
        "sentiment", "current", [Target(version, 2)], expected_revision=0, actor="ben"
    )
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


# ── watch ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_watch_tells_what_changed_since(store: PromptStore, build: Any) -> None:
    start = await store.revision()
    for task_id in ("a", "b", "c"):
        await store.publish(build.prompt(task_id))
    middle = await store.revision()
    await store.delete_task("b")
    changes = await store.watch(start, timeout=60)
    assert (set(changes.tasks), len(changes.tasks), changes.reset) == ({"a", "b", "c"}, 3, False)
    assert changes.revision == await store.revision() == Revision(start.epoch, 4)
    assert (await store.watch(middle, timeout=60)).tasks == ("b",)


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
        watchers = [asyncio.create_task(store.watch(now, timeout=60)) for _ in range(3)]
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
    changes = await store.watch(elsewhere, timeout=60)
    assert (changes.revision, changes.reset) == (now, True)


async def test_the_epoch_stays_and_every_change_counts_one(
    backend: Any, store: PromptStore, build: Any
) -> None:
    version = (await store.publish(build.prompt())).version
    alias = await store.set_alias("sentiment", "current", [Target(version)], expected_revision=0)
    await store.delete_alias("sentiment", "current", expected_revision=alias.revision)
    await store.delete_version("sentiment", version)
    await store.delete_task("sentiment")
    other = backend.open()
    assert await other.revision() == await store.revision() == Revision((await store.revision()).epoch, 5)
    await other.aclose()


# ── collect, several stores, close ──────────────────────────────────────────────────────────────────────


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
    watcher = asyncio.create_task(store.watch(now, timeout=60))
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
