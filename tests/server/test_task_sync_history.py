"""A store that was set back, or lost what it had: which tasks are gone, and which were lost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prompt_store import Revision, Target, TaskPage, TaskRecord, version_of
from prompt_store.file_store import FileStore
from server.prompt_sync import PromptSync
from tests.server.conftest import Start
from tests.server.fakes import idle, prompt_bytes


async def test_an_answer_from_a_copy_that_lags_moves_nothing_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        sync, store = server.apps.service.sync, server.apps.service.store
        old = await store.task("sentiment")
        version = await server.publish(prompt_bytes(favours=1))
        await sync.refresh("sentiment")

        async def lagging(task_id: str) -> object:
            return old

        monkeypatch.setattr(store, "task", lagging)
        await sync.refresh("sentiment")
        assert (await server.classify()).json()["version"] == version


async def test_a_store_set_back_to_when_a_task_was_deleted_takes_it_not_away(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptSync, "follow", idle)
    async with start() as server:
        store, sync = server.apps.service.store, server.apps.service.sync
        now = await store.revision()
        await store.delete_task("sentiment", force=True)

        async def smaller() -> Revision:
            return Revision(now.epoch, now.number - 1)

        with monkeypatch.context() as patch:
            patch.setattr(store, "revision", smaller)
            await sync.refresh("sentiment")
        assert (await server.classify()).status_code == 200
        await sync.refresh("sentiment")
        assert (await server.classify()).status_code == 404


async def test_a_task_that_is_gone_without_a_tombstone_was_lost_not_deleted(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is emptied while it is listed: no page says so."""
    cache = tmp_path / "cache"
    async with start(cache_dir=cache) as server:
        for name in ("deleted", "lost"):
            await server.publish(prompt_bytes(name), name)
            await server.apps.service.sync.refresh(name)
        await server.apps.service.store.delete_task("deleted", force=True)
        await server.apps.service.sync.refresh("deleted")
        await server.publish(prompt_bytes("deleted"), "deleted")
        await server.apps.service.sync.refresh("deleted")
        assert await server.apps.service.sync._view.reached(await server.apps.service.store.revision(), 5.0)
    async with start(task=False) as server:
        await server.apps.service.store.delete_task("deleted", force=True)
    real = (FileStore.list, FileStore.task, FileStore.history)

    async def listed(self: Any, **options: Any) -> TaskPage:
        page = await real[0](self, **options)
        return replace(page, tasks=tuple(task for task in page.tasks if task.task_id != "lost"))

    async def task(self: Any, task_id: str) -> TaskRecord:
        return await real[1](self, "never-there" if task_id == "lost" else task_id)

    async def history(self: Any, task_id: str, **options: Any) -> Any:
        return await real[2](self, "never-there" if task_id == "lost" else task_id, **options)

    monkeypatch.setattr(FileStore, "list", listed)
    monkeypatch.setattr(FileStore, "task", task)
    monkeypatch.setattr(FileStore, "history", history)
    async with start(task=False, cache_dir=cache) as server:
        assert (await server.classify(task_id="lost")).status_code == 200
        assert (await server.classify(task_id="deleted")).status_code == 404
        assert server.counted("catalogue_missing_tasks") == 1
        assert server.counted("store_history_lost_total") == 1


async def test_a_record_that_was_unreadable_when_history_was_lost_is_believed_once_mended(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are those of the new history: smaller ones are no sign of a copy that lags."""
    monkeypatch.setattr(PromptSync, "follow", idle)
    monkeypatch.setattr(PromptSync, "mend", idle)
    async with start() as server:
        store, sync = server.apps.service.store, server.apps.service.sync
        for favours in (1, 0, 1):
            old = await server.publish(prompt_bytes(favours=favours))
        await sync.refresh("sentiment")
        record = await store.task("sentiment")
        listed, looked_up = store.list, store.task

        async def damaged(**options: Any) -> TaskPage:
            return replace(await listed(**options), tasks=(), unreadable=("sentiment",))

        async def mended(task_id: str) -> TaskRecord:
            aliases = {"current": replace(record.aliases["current"], targets=(Target(new),), revision=1)}
            return replace(record, revision=1, aliases=aliases)

        new = version_of(prompt_bytes(favours=0))
        assert new != old
        monkeypatch.setattr(store, "list", damaged)
        sync._tasks.lost = True
        await sync.start()
        assert (await server.classify()).json()["version"] == old
        monkeypatch.setattr(store, "task", mended)
        await sync.refresh("sentiment")
        assert (await server.classify()).json()["version"] == new
        assert looked_up is not store.task


async def test_what_was_deleted_after_a_loss_is_gone_and_what_was_deleted_before_it_is_not(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptSync, "follow", idle)
    async with start(task=False) as server:
        store, sync = server.apps.service.store, server.apps.service.sync
        for name in ("made-anew", "deleted-later"):
            await server.publish(prompt_bytes(name), name)
        await store.delete_task("made-anew", force=True)
        await server.publish(prompt_bytes("made-anew"), "made-anew")
        await sync.start()
        made_anew = await store.task("made-anew")
        assert made_anew.revision == server.apps.service.catalogue.get("made-anew").revision
        await store.delete_task("deleted-later", force=True)
        listed, history = store.list, store.history

        async def without_one(**options: Any) -> TaskPage:
            page = await listed(**options)
            return replace(page, tasks=tuple(one for one in page.tasks if one.task_id != "made-anew"))

        async def older(task_id: str, **options: Any) -> Any:
            events = await history(task_id)
            if task_id == "made-anew":  # the store stands before it was made again
                events = tuple(event for event in events if "delete" in event.action)
            return events[:1]

        monkeypatch.setattr(store, "list", without_one)
        monkeypatch.setattr(store, "history", older)
        sync._lose(await store.revision())
        await sync.start()
        assert (await server.classify(task_id="deleted-later")).status_code == 404
        assert (await server.classify(task_id="made-anew")).status_code == 200
        assert server.counted("catalogue_missing_tasks") == 1


async def test_a_task_newer_than_the_store_says_that_history_was_lost(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write is shown before the view has it, and a snapshot may hold the one without the other."""
    monkeypatch.setattr(PromptSync, "follow", idle)
    async with start() as server:
        sync, catalogue = server.apps.service.sync, server.apps.service.catalogue
        served = catalogue.get("sentiment")
        catalogue.put(replace(served, revision=served.revision + 5))
        await sync.start()
        assert server.counted("store_history_lost_total") == 1
        assert catalogue.get("sentiment").revision == served.revision
