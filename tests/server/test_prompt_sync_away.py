"""A store that is away, came back older, or was emptied: what is served goes on, and what was lost is said."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prompt_store import Changes, Revision, StoreUnavailable, Target, TaskPage, version_of
from server.prompt_sync import PromptSync
from tests.server.conftest import Eventually, Start
from tests.server.fakes import idle, prompt_bytes


def away(store: Path) -> None:
    """A file where the store's folder was: nothing of it can be opened, not even by root."""
    store.rename(store.with_name("store.away"))
    store.write_text("")


def back(store: Path) -> None:
    store.unlink()
    store.with_name("store.away").rename(store)


async def test_a_write_that_was_acknowledged_is_shown_when_the_store_is_back(
    start: Start, eventually: Eventually, tmp_path: Path
) -> None:
    async with start() as server:
        version = await server.publish(prompt_bytes(favours=1))
        away(tmp_path / "store")
        await server.apps.service.sync.refresh_after_write("sentiment")
        back(tmp_path / "store")

        async def shown() -> bool:
            return bool((await server.classify()).json()["version"] == version)

        await eventually(shown)


async def test_with_the_store_away_known_tasks_answer_and_writes_are_refused(
    start: Start, eventually: Eventually, tmp_path: Path
) -> None:
    async with start(cache_dir=tmp_path / "cache", prompt_cache_bytes=0) as server:
        away(tmp_path / "store")
        assert (await server.classify()).status_code == 200
        data = prompt_bytes(favours=1)
        answer = await server.admin.put(
            f"/admin/tasks/sentiment/versions/{version_of(data)}",
            content=data,
            headers={"Content-Type": "application/octet-stream"},
        )
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await server.public.get("/readyz")).status_code == 200
        back(tmp_path / "store")


async def test_an_emptied_store_takes_no_task_away(
    start: Start, eventually: Eventually, tmp_path: Path
) -> None:
    """A flush, then a restore step by step: no request may see any of it."""
    async with start() as server:
        store = server.apps.service.store
        await server.publish(prompt_bytes("other"), "other")

        async def served() -> bool:
            return (await server.classify(task_id="other")).status_code == 200

        await eventually(served)
        version = (await server.classify()).json()["version"]
        seen = []

        async def ask() -> None:
            while True:
                answer = await server.classify()
                seen.append((answer.status_code, answer.json().get("version")))
                await asyncio.sleep(0.002)

        asking = asyncio.create_task(ask())
        (tmp_path / "store").rename(tmp_path / "emptied")
        await eventually(lambda: server.counted("store_history_lost_total") == 1)
        assert server.counted("catalogue_missing_tasks") == 2
        shown = (await server.admin.get("/admin/tasks/sentiment")).json()
        assert shown["missing_in_store"]
        assert shown["aliases"]["current"]["serving"] == [version]
        listed = (await server.admin.get("/admin/tasks")).json()["tasks"]
        assert [(task["task_id"], task["missing_in_store"]) for task in listed] == [
            ("other", True),
            ("sentiment", True),
        ]
        published = await store.publish(prompt_bytes(favours=1))
        assert await server.apps.service.sync._view.reached(published.revision, 5.0)
        assert (await server.classify()).json()["version"] == version  # published, but not current yet
        assert (await server.classify(version=published.version)).status_code == 200
        moved = await store.set_alias(
            "sentiment", "current", [Target(published.version)], expected_revision=0
        )
        assert await server.apps.service.sync._view.reached(moved.revision, 5.0)
        assert (await server.classify()).json()["version"] == published.version
        assert server.counted("catalogue_missing_tasks") == 1
        asking.cancel()
        assert {status for status, _ in seen} == {200}
        # Deleted on purpose, in the new history: gone.
        await store.delete_task("sentiment", force=True)

        async def gone() -> bool:
            return (await server.classify()).status_code == 404

        await eventually(gone)
        assert (await server.classify(task_id="other")).status_code == 200


async def test_a_restart_with_the_store_away_serves_the_snapshot_and_catches_up(
    start: Start, eventually: Eventually, tmp_path: Path
) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    async with start(cache_dir=cache) as server:
        await server.publish(prompt_bytes("deleted"), "deleted")
        await server.apps.service.store.publish(prompt_bytes(favours=1, bias=3.0))
        await eventually(lambda: len(server.apps.service.catalogue) == 2)
        version = (await server.classify()).json()["version"]
        before = await server.apps.service.store.revision()
        assert await server.apps.service.sync._view.reached(before, 5.0)
    away(store)
    async with start(cache_dir=cache, task=False) as server:
        answer = await server.classify()
        assert (answer.status_code, answer.json()["version"]) == (200, version)
        assert answer.headers["X-Store-Revision"] == f"{before.epoch}:{before.number}"
        ready = (await server.public.get("/readyz")).json()
        assert ready["store"]["source"] == "snapshot"
        assert ready["tiers"]["disk"]["entries"] >= 2
        assert server.counted("serving_snapshot") == 1
        never_fetched = version_of(prompt_bytes(favours=1, bias=3.0))
        answer = await server.classify(version=never_fetched)
        assert (answer.status_code, answer.json()["code"]) == (503, "prompt_unavailable")
        later = await server.classify(min_revision=f"{before.epoch}:{before.number}")
        assert later.status_code == 200
        back(store)
        await eventually(lambda: server.counted("serving_snapshot") == 0)

        async def fetched() -> bool:
            return (await server.classify(version=never_fetched)).status_code == 200

        await eventually(fetched)
        newer = await server.publish(prompt_bytes(favours=1))
        await server.apps.service.store.delete_task("deleted", force=True)

        async def followed() -> bool:
            gone = (await server.classify(task_id="deleted")).status_code == 404
            return gone and (await server.classify()).json()["version"] == newer

        await eventually(followed)


async def test_what_was_deleted_while_the_server_was_down_is_gone_and_what_was_flushed_is_not(
    start: Start, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    async with start(cache_dir=cache) as server:
        await server.publish(prompt_bytes("kept"), "kept")
        await server.apps.service.sync.refresh("kept")
        store = server.apps.service.store
        assert await server.apps.service.sync._view.reached(await store.revision(), 5.0)
        await store.delete_task("sentiment", force=True)
    async with start(cache_dir=cache, task=False) as server:
        assert (await server.classify()).status_code == 404
        assert (await server.classify(task_id="kept")).status_code == 200
    (tmp_path / "store").rename(tmp_path / "emptied")
    async with start(cache_dir=cache, task=False) as server:
        assert (await server.classify(task_id="kept")).status_code == 200
        assert server.counted("store_history_lost_total") == 1
        assert server.counted("catalogue_missing_tasks") == 1


async def test_a_task_that_was_to_be_tried_again_outlives_the_loss_of_the_store(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptSync, "follow", idle)
    monkeypatch.setattr("server.prompt_sync._WATCH_SECONDS", 0.0)
    async with start() as server:
        sync = server.apps.service.sync
        (tmp_path / "store").rename(tmp_path / "emptied")
        await sync.refresh("sentiment")  # before `watch` has noticed
        assert (await server.classify()).status_code == 200
        sync._retry.add("sentiment")  # a refresh had met a store that did not answer
        await sync._step()
        assert not sync._retry  # all was taken in anew
        await sync._step()
        assert server.counted("store_history_lost_total") == 1
        await sync.refresh("sentiment")  # the new history never knew it
        assert (await server.classify()).status_code == 200
        assert server.counted("catalogue_missing_tasks") == 1
        # Published and deleted in the new one: gone.
        store = server.apps.service.store
        await store.publish(prompt_bytes())
        await store.delete_task("sentiment")
        await sync.refresh("sentiment")
        assert (await server.classify()).status_code == 404


async def test_a_loss_that_was_told_once_is_not_forgotten_when_the_listing_fails(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptSync, "follow", idle)
    monkeypatch.setattr("server.prompt_sync._WATCH_SECONDS", 0.0)
    async with start() as server:
        store, sync = server.apps.service.store, server.apps.service.sync
        watch, listed = store.watch, store.list

        async def told(since: Revision, **options: Any) -> Changes:
            monkeypatch.setattr(store, "watch", watch)
            return replace(await watch(since, **options), reset=True)

        async def fails(**options: Any) -> TaskPage:
            monkeypatch.setattr(store, "list", listed)
            raise StoreUnavailable("down")

        monkeypatch.setattr(store, "watch", told)
        monkeypatch.setattr(store, "list", fails)
        with pytest.raises(StoreUnavailable):
            await sync._step()
        assert server.counted("store_history_lost_total") == 0
        await sync._step()
        assert server.counted("store_history_lost_total") == 1
        await sync._step()
        assert server.counted("store_history_lost_total") == 1


async def test_a_store_that_came_back_older_and_was_written_on_while_the_server_was_down_is_noticed(
    start: Start, tmp_path: Path
) -> None:
    """Its numbers look like progress: what the snapshot's revision was is another change now."""
    store, cache = tmp_path / "store", tmp_path / "cache"
    async with start(cache_dir=cache) as server:
        shutil.copytree(store, tmp_path / "backup")
        await server.publish(prompt_bytes("kept"), "kept")
        lost = await server.publish(prompt_bytes(favours=1))
        known = await server.apps.service.store.revision()
        assert await server.apps.service.sync._view.reached(known, 5.0)
        assert (await server.classify()).json()["version"] == lost
    shutil.move(store, tmp_path / "broken")
    shutil.move(tmp_path / "backup", store)
    async with start(task=False) as server:
        for name in (
            "kept",
            *(f"t{number}" for number in range(8)),
        ):  # the same task, published anew: no task is missing
            await server.publish(prompt_bytes(name), name)
        assert (await server.apps.service.store.revision()).number > known.number
    async with start(task=False, cache_dir=cache) as server:
        assert server.counted("store_history_lost_total") == 1
        assert (await server.classify()).json()["version"] == version_of(prompt_bytes())
        assert (await server.classify(task_id="kept")).status_code == 200
