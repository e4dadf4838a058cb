"""The contract of every backend: a record that was damaged is told with its task, and hides no other."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from prompt_store import CorruptVersion, PromptStore, PromptStoreError, Target, VersionInUse, open_store

WRONG_VALUES = [
    ("published_at", "when"),
    ("published_at", -1.0),
    ("published_at", 1e300),  # no calendar goes there
    ("labels", "two"),
    ("labels", 2.5),
]
WRONG_TARGETS = ["nonsense", "{}", "[]", "[[1, 2]]", '[["x", 1]]', '[["%s", "much"]]', '[["%s", 0]]', "7"]


async def is_told(store: PromptStore) -> None:
    with pytest.raises(
        PromptStoreError, match="record of task sentiment is damaged: delete the task with force"
    ):
        await store.task("sentiment")
    page = await store.list(limit=2)
    assert ([task.task_id for task in page.tasks], page.unreadable) == (["first"], ("sentiment",))
    assert page.next == "sentiment"
    assert [task.task_id for task in (await store.list(after=page.next)).tasks] == ["whole"]


@pytest.fixture
async def version(store: PromptStore, build: Any) -> str:
    """Of the task that is to be damaged, between two others."""
    published = await store.publish(build.prompt())
    await store.set_alias("sentiment", "current", [Target(published.version)], expected_revision=0)
    for task_id in ("first", "whole"):
        await store.publish(build.prompt(task_id))
    return published.version


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
async def test_a_damaged_version_is_told_and_published_anew(
    store: PromptStore, backend: Any, build: Any, version: str, name: str, value: object
) -> None:
    backend.damage_version("sentiment", version, name, value)
    await is_told(store)
    await store.publish(build.prompt())
    task = await store.task("sentiment")
    assert [one.version for one in task.versions] == [version]
    assert [target.version for target in task.aliases["current"].targets] == [version]
    assert len((await store.list()).tasks) == 3


async def test_a_damaged_size_is_told_of_the_bytes_and_published_anew(
    store: PromptStore, backend: Any, build: Any, version: str
) -> None:
    backend.damage_version("sentiment", version, "size", 7)
    with pytest.raises(CorruptVersion, match="publish it anew"):
        await store.get("sentiment", version)
    await store.publish(build.prompt())
    assert await store.get("sentiment", version) == build.prompt()


@pytest.mark.parametrize("targets", WRONG_TARGETS)
async def test_a_damaged_alias_is_told_and_goes_with_its_task(
    store: PromptStore, backend: Any, build: Any, version: str, targets: str
) -> None:
    """As the error advises."""
    backend.damage_alias("sentiment", "current", targets.replace("%s", version))
    await is_told(store)
    with pytest.raises(VersionInUse):
        await store.delete_task("sentiment")
    if version in targets.replace("%s", version):
        with pytest.raises(VersionInUse):
            await store.delete_version("sentiment", version)
    await store.delete_task("sentiment", force=True)
    assert (await store.publish(build.prompt())).created
    task = await store.task("sentiment")
    assert ([one.version for one in task.versions], task.aliases) == ([version], {})
    assert len((await store.list()).tasks) == 3


@pytest.mark.parametrize(
    ("table", "column"),
    [("versions", "method"), ("versions", "version"), ("aliases", "name"), ("aliases", "targets")],
)
async def test_a_byte_that_is_no_text_hides_no_other_task(
    tmp_path: Path, build: Any, table: str, column: str
) -> None:
    """One flipped bit in SQLite's file, which it does not notice."""
    store = open_store(f"file://{tmp_path}")
    published = await store.publish(build.prompt())
    await store.set_alias("sentiment", "current", [Target(published.version)], expected_revision=0)
    for task_id in ("first", "whole"):
        await store.publish(build.prompt(task_id))
    with contextlib.closing(
        sqlite3.connect(tmp_path / "catalogue.sqlite3", isolation_level=None)
    ) as database:
        changed = database.execute(
            f"UPDATE {table} SET {column} = CAST(x'ff' AS TEXT) WHERE task_id = 'sentiment'"
        )
        assert changed.rowcount == 1
    await is_told(store)
    await store.aclose()
