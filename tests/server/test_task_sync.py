"""A task's targets follow the store, each task by itself."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prompt_store import (
    BackboneRef,
    Golden,
    PromptStoreError,
    StoreUnavailable,
    Target,
    TaskPage,
    TaskRecord,
    version_of,
)
from prompt_store.file_store import FileStore
from server.prompt_sync import PromptSync
from server.warming import Warming
from tests.server.conftest import Eventually, Start
from tests.server.fakes import REF, idle, prompt_bytes

OTHER_REF = BackboneRef.model_validate({**REF.model_dump(), "fingerprint": "0" * 64})
MANY = [f"t{number:03}" for number in range(70)]  # more than a start makes ready
BAD = [Golden(text="x", label="negative")]


async def test_a_version_that_no_start_made_ready_is_rehearsed_by_its_first_request(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Warming, "run", idle)
    async with start(task=False) as server:
        for name in MANY[:-1]:
            await server.publish(prompt_bytes(name), name)
        bad = await server.publish(prompt_bytes(MANY[-1], favours=1, golden=BAD), MANY[-1])
    async with start(task=False) as server:
        assert (await server.classify(task_id=MANY[-2])).status_code == 200
        for _ in range(2):
            answer = await server.classify(task_id=MANY[-1])
            assert (answer.status_code, answer.json()["code"]) == (503, "prompt_unavailable")
        alias = (await server.admin.get(f"/admin/tasks/{MANY[-1]}")).json()["aliases"]["current"]
        assert alias["problem"]["code"] == "golden_mismatch"
        assert alias["problem"]["versions"] == [bad]
        assert server.counted("refused_versions_total", code="golden_mismatch") == 1
        await server.apps.service.sync.refresh(MANY[-1])
        assert server.counted("refused_versions_total", code="golden_mismatch") == 1
        good = await server.publish(prompt_bytes(MANY[-1]), MANY[-1])
        await server.apps.service.sync.refresh(MANY[-1])
        assert (await server.classify(task_id=MANY[-1])).json()["version"] == good
        assert not server.apps.service.catalogue.troubled


async def test_a_bad_move_while_the_server_was_down_leaves_what_it_served(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Warming, "run", idle)
    cache, last = tmp_path / "cache", MANY[-1]
    async with start(task=False) as server:
        versions = {name: await server.publish(prompt_bytes(name), name) for name in MANY}
    async with start(task=False, cache_dir=cache) as server:
        assert len(server.apps.service.catalogue) == len(MANY)
    async with start(task=False) as server:
        await server.publish(prompt_bytes(last, favours=1, golden=BAD), last)
    async with start(task=False, cache_dir=cache) as server:
        answer = await server.classify(task_id=last)
        assert (answer.status_code, answer.json()["version"]) == (200, versions[last])
        shown = (await server.admin.get(f"/admin/tasks/{last}")).json()["aliases"]["current"]
        assert shown["problem"]["code"] == "golden_mismatch"


@pytest.mark.parametrize("error", [KeyError("secret"), PromptStoreError("the record is damaged")])
async def test_a_record_that_cannot_be_read_holds_up_no_other_task(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with start() as server:
        store, view = server.apps.service.store, server.apps.service.sync._view
        real = store.task

        async def damaged(task_id: str) -> object:
            if task_id in ("sentiment", "never-seen"):
                raise error
            return await real(task_id)

        monkeypatch.setattr(store, "task", damaged)
        before = (await server.classify()).json()["version"]
        version = await server.publish(prompt_bytes(favours=1))
        await server.publish(prompt_bytes("never-seen"), "never-seen")
        await server.publish(prompt_bytes("other"), "other")
        assert await view.reached(await store.revision(), 20.0)
        assert (await server.classify(task_id="other")).status_code == 200
        assert (await server.classify()).json()["version"] == before
        assert (await server.classify(task_id="never-seen")).json()["code"] == "prompt_unavailable"
        code = getattr(error, "code", "internal_error")
        await server.apps.service.sync.refresh("sentiment")
        assert server.counted("unreadable_tasks_total", code=code) == 2  # once for each
        assert "secret" not in str(server.apps.service.catalogue.get("sentiment"))
        monkeypatch.setattr(store, "task", real)
        await server.apps.service.sync.refresh("sentiment")
        assert (await server.classify()).json()["version"] == version
        assert "sentiment" not in server.apps.service.catalogue.troubled


async def test_a_page_with_a_damaged_record_is_taken_in_without_it(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        store, sync = server.apps.service.store, server.apps.service.sync
        listed, looked_up = store.list, store.task

        async def list_with_one_damaged(**options: Any) -> TaskPage:
            return replace(await listed(**options), unreadable=("broken",))

        async def task(task_id: str) -> TaskRecord:
            if task_id == "broken":
                raise PromptStoreError("the store's record of task broken is damaged")
            return await looked_up(task_id)

        monkeypatch.setattr(store, "list", list_with_one_damaged)
        monkeypatch.setattr(store, "task", task)
        await sync.start()
        await eventually(lambda: server.counted("unreadable_tasks_total", code="store_error") == 1)
        assert (await server.classify()).status_code == 200
        assert (await server.admin.get("/admin/tasks")).json()["unreadable"] == ["broken"]


async def test_a_task_whose_only_version_cannot_serve_is_unavailable_not_unknown(start: Start) -> None:
    async with start(task=False) as server:
        await server.publish(prompt_bytes(ref=OTHER_REF))
        await server.apps.service.sync.refresh("sentiment")
        answer = await server.classify()
        assert (answer.status_code, answer.json()["code"]) == (503, "prompt_unavailable")


async def test_a_version_that_cannot_be_had_holds_up_no_other_task(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store answers, but for one version's bytes: too large for its timeout, say."""
    monkeypatch.setattr("server.prompt_sync._WATCH_SECONDS", 0.05)
    monkeypatch.setattr("server.prompt_sync._MEND_SECONDS", 0.1)
    monkeypatch.setattr("server.prompt_cache._RETRY_FAILED_AFTER", 0.0)
    big = prompt_bytes(favours=1)
    async with start() as server:
        store, view = server.apps.service.store, server.apps.service.sync._view
        old = (await server.classify()).json()["version"]
        real = store.get
        monkeypatch.setattr(store, "get", without(version_of(big), real))
        await server.publish(big)
        assert await view.reached(await store.revision(), 20.0)
        await server.publish(prompt_bytes("other"), "other")
        assert await view.reached(await store.revision(), 20.0)
        assert (await server.classify(task_id="other")).status_code == 200
        assert (await server.classify()).json()["version"] == old
        now = view.text
        answer = await server.classify(min_revision=now)
        assert (answer.status_code, answer.json()["code"]) == (503, "prompt_unavailable")
        monkeypatch.setattr(store, "get", real)

        async def mended() -> bool:
            return bool((await server.classify(min_revision=now)).json().get("version") == version_of(big))

        await eventually(mended)


async def test_a_version_that_cannot_be_had_keeps_no_server_from_starting(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = prompt_bytes(favours=1)
    async with start() as server:
        await server.publish(big)
        await server.publish(prompt_bytes("other"), "other")
    waited: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float, *rest: Any) -> None:
        waited.append(seconds)
        await real_sleep(min(seconds, 0.01), *rest)

    monkeypatch.setattr("server.service.asyncio.sleep", sleep)
    monkeypatch.setattr("server.prompt_tiers._LONGEST_PAUSE", 0.0)
    monkeypatch.setattr("prompt_store.file_store.FileStore.get", without(version_of(big)))
    async with start(task=False) as server:
        assert (await server.classify(task_id="other")).status_code == 200
        assert (await server.classify()).status_code == 503
        assert (await server.public.get("/readyz")).status_code == 200


def without(version: str, real: Callable[..., Awaitable[bytes]] | None = None) -> Any:
    """A store's `get` that fails for one version."""
    whole = FileStore.get

    async def get(*args: Any) -> bytes:
        if args[-1] == version:
            raise StoreUnavailable("no answer in time")
        return await (real(*args) if real is not None else whole(*args))

    return get


async def test_the_problems_of_later_aliases_stand_while_the_first_is_made_ready(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 404, as if there were no such alias, and not the old version for who demands a revision."""
    monkeypatch.setattr(PromptSync, "follow", idle)
    monkeypatch.setattr(PromptSync, "mend", idle)
    async with start() as server:
        service = server.apps.service
        await server.publish(prompt_bytes(favours=1, golden=BAD), alias="canary")
        await service.sync.refresh("sentiment")
        before = service.catalogue.get("sentiment").problems
        assert set(before) == {"canary"}
        seen = []
        service.catalogue.listen(lambda _, __, now: seen.append(now.problems))
        await server.publish(prompt_bytes(favours=0, bias=2.0))
        await service.sync.refresh("sentiment")
        assert len(seen) >= 1
        assert all(problems == before for problems in seen)
        changes = service.catalogue.changes
        await service.sync.refresh("sentiment")  # nothing is new
        assert service.catalogue.changes == changes


async def test_what_fails_while_the_store_is_away_is_held_against_no_task(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptSync, "follow", idle)
    async with start() as server:
        tasks = server.apps.service.sync._tasks

        async def fails(task_id: str) -> TaskRecord:
            raise StoreUnavailable("down")

        monkeypatch.setattr(server.apps.service.store, "task", fails)
        for _ in range(4):
            assert await tasks.refresh_all(["sentiment"])
        assert not await tasks.refresh_all(["sentiment"])  # the task's own problem by now
        assert server.apps.service.catalogue.get("sentiment").problems["current"].code == "store_unavailable"
        tasks.forgive()
        assert await tasks.refresh_all(["sentiment"])


async def test_a_version_that_comes_slowly_holds_up_nothing_and_serves_when_it_is_there(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.refusals._PATIENCE", 0.05)
    monkeypatch.setattr("server.prompt_sync._MEND_SECONDS", 3600.0)  # it is told, not found
    slow, arrives = prompt_bytes(favours=1), asyncio.Event()
    async with start() as server:
        store, view = server.apps.service.store, server.apps.service.sync._view
        old = (await server.classify()).json()["version"]
        real = store.get

        async def get(task_id: str, version: str) -> bytes:
            if version == version_of(slow):
                await arrives.wait()
            return await real(task_id, version)

        monkeypatch.setattr(store, "get", get)
        await server.publish(slow)
        good = await server.publish(prompt_bytes(bias=5.0), alias="zz-sibling")
        await server.publish(prompt_bytes("other"), "other")
        assert await view.reached(await store.revision(), 20.0)
        now = view.text

        async def other_serves() -> bool:  # on a busy machine not within the patience of one request
            return (await server.classify(task_id="other", min_revision=now)).status_code == 200

        await eventually(other_serves)
        assert (await server.classify()).json()["version"] == old
        assert (await server.classify(min_revision=now)).json()["code"] == "prompt_unavailable"
        assert (await server.classify(version="zz-sibling", min_revision=now)).json()["version"] == good
        # Whoever rolls back meanwhile waits for nothing.
        await store.set_alias("sentiment", "current", [Target(old)], expected_revision=None)
        await server.apps.service.sync.refresh("sentiment")
        assert not server.apps.service.catalogue.get("sentiment").problems
        await store.set_alias("sentiment", "current", [Target(version_of(slow))], expected_revision=None)
        await server.apps.service.sync.refresh("sentiment")
        arrives.set()

        async def serves() -> bool:
            return bool((await server.classify()).json()["version"] == version_of(slow))

        await eventually(serves)
