"""The contract of every backend: aliases: compare-and-set, targets, deletes."""

import asyncio
from typing import Any

import pytest

from prompt_store import (
    InvalidAlias,
    PromptStore,
    RevisionConflict,
    Target,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
)

NOWHERE = "0" * 64


async def test_an_alias_moves_by_compare_and_set(store: PromptStore, build: Any) -> None:
    old = Target((await store.publish(build.prompt())).version)
    new = Target((await store.publish(build.prompt(seed=1))).version, weight=3)
    first = (await store.set_alias("sentiment", "current", [old], expected_revision=0)).alias
    assert (first.name, first.targets, first.version) == ("current", (old,), old.version)
    assert first.revision > 0
    second = (
        await store.set_alias("sentiment", "current", [new, old], expected_revision=first.revision)
    ).alias
    assert (second.targets, second.version) == ((new, old), None)
    assert second.revision > first.revision
    assert (await store.task("sentiment")).aliases == {"current": second}
    for stale in (first.revision, 0, second.revision + 1):
        with pytest.raises(RevisionConflict) as caught:
            await store.set_alias("sentiment", "current", [old], expected_revision=stale)
        assert caught.value.current == second.revision
    assert (await store.task("sentiment")).aliases == {"current": second}
    third = (await store.set_alias("sentiment", "current", [old], expected_revision=None)).alias
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
        alias = (await store.set_alias("sentiment", "current", [target], expected_revision=0)).alias
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
    one = (await store.set_alias("sentiment", "current", [target], expected_revision=0)).alias
    two = (await store.set_alias("sentiment", "canary", [target], expected_revision=0)).alias
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
    alias = (await store.set_alias("sentiment", "current", [target], expected_revision=0)).alias
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
    assert (await store.task("sentiment")).aliases == {"current": winners[0].alias}
