"""The contract of every backend: versions: publish, get, damage, deletes."""

from typing import Any

import pytest

from prompt_store import (
    CorruptVersion,
    DigestMismatch,
    InvalidAlias,
    InvalidPrompt,
    InvalidTaskId,
    PromptStore,
    Target,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
    version_of,
)

NOWHERE = "0" * 64


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


async def test_a_version_with_an_alias_on_it_is_kept(store: PromptStore, build: Any) -> None:
    old = (await store.publish(build.prompt())).version
    new = (await store.publish(build.prompt(seed=1))).version
    alias = (
        await store.set_alias("sentiment", "current", [Target(new), Target(old)], expected_revision=0)
    ).alias
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
    alias = (await store.set_alias("sentiment", "current", [Target(version)], expected_revision=0)).alias
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
