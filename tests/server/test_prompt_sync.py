import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prompt_store import (
    BackboneRef,
    Changes,
    Golden,
    Revision,
    StoreUnavailable,
    Target,
    TaskPage,
    version_of,
)
from server.prompt_sync import PromptSync
from server.warming import Warming
from tests.server.conftest import Start
from tests.server.fakes import REF, FakeBackbone, prompt_bytes

Eventually = Callable[[Callable[[], bool | Awaitable[bool]]], Awaitable[None]]
OTHER_REF = BackboneRef.model_validate({**REF.model_dump(), "fingerprint": "0" * 64})


async def test_a_version_published_by_another_process_serves_soon(
    start: Start, eventually: Eventually
) -> None:
    async with start() as server:
        assert (await server.classify()).json()["data"][0]["label"] == "negative"
        version = await server.publish(prompt_bytes(favours=1))

        async def serves() -> bool:
            answer = (await server.classify()).json()
            assert answer["data"][0]["label"] == ("positive" if answer["version"] == version else "negative")
            return bool(answer["version"] == version)

        await eventually(serves)


async def test_the_new_version_is_on_the_device_before_it_serves(
    start: Start, eventually: Eventually
) -> None:
    async with start() as server:
        version = await server.publish(prompt_bytes(favours=1))
        cache, catalogue = server.apps.service.cache, server.apps.service.catalogue

        def moved() -> bool:
            now = catalogue.get("sentiment").current() == version
            assert not now or version in cache
            return now

        await eventually(moved)


async def test_a_new_task_and_a_deleted_one_are_followed(start: Start, eventually: Eventually) -> None:
    async with start() as server:
        assert (await server.classify(task_id="new")).status_code == 404
        await server.publish(prompt_bytes("new"), "new")

        async def status(wanted: int) -> bool:
            return (await server.classify(task_id="new")).status_code == wanted

        await eventually(lambda: status(200))
        await server.apps.service.store.delete_task("new", force=True)
        await eventually(lambda: status(404))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (prompt_bytes(favours=1, ref=OTHER_REF), "incompatible_prompt"),
        (prompt_bytes(favours=1, golden=[Golden(text="x", label="negative")]), "golden_mismatch"),
        (prompt_bytes(favours=1, golden=[Golden(text="not-a-number", label="positive")]), "not_finite"),
    ],
)
async def test_a_version_that_cannot_serve_leaves_the_old_one(
    start: Start, eventually: Eventually, data: bytes, code: str
) -> None:
    async with start() as server:
        old = (await server.classify()).json()["version"]
        bad = await server.publish(data)
        await eventually(lambda: server.counted("refused_versions_total", code=code) == 1)
        answer = await server.classify()
        assert (answer.status_code, answer.json()["version"]) == (200, old)
        alias = (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"]
        assert alias["version"] == bad
        assert alias["serving"] == [old]
        assert alias["problem"]["code"] == code
        good = await server.publish(prompt_bytes(favours=1))

        async def mended() -> bool:
            return bool((await server.classify()).json()["version"] == good)

        await eventually(mended)
        assert (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"][
            "problem"
        ] is None


async def test_damaged_bytes_leave_the_old_version_and_heal(
    start: Start, eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prompt_sync._WATCH_SECONDS", 0.1)
    monkeypatch.setattr("server.prompt_sync._MEND_SECONDS", 0.1)
    monkeypatch.setattr("server.prompt_cache._RETRY_FAILED_AFTER", 0.0)
    async with start() as server:
        old = (await server.classify()).json()["version"]
        data = prompt_bytes(favours=1)
        store = server.apps.service.store
        await store.publish(data)
        blob = next(path for path in (tmp_path / "store").rglob(f"*{version_of(data)}*") if path.is_file())
        whole = blob.read_bytes()
        blob.chmod(0o600)
        blob.write_bytes(whole[:-1] + b"\x01")
        await store.set_alias("sentiment", "current", [Target(version_of(data))], expected_revision=None)
        await eventually(lambda: server.counted("refused_versions_total", code="corrupt_version") >= 1)
        assert (await server.classify()).json()["version"] == old
        blob.write_bytes(whole)  # no change in the catalogue says so: a quiet moment must find out

        async def healed() -> bool:
            return bool((await server.classify()).json()["version"] == version_of(data))

        await eventually(healed)


async def test_a_store_that_fails_for_a_while_stops_nothing(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prompt_sync._WATCH_SECONDS", 0.1)
    async with start() as server:
        store = server.apps.service.store
        real = store.task

        async def down(task_id: str) -> object:
            raise StoreUnavailable("down")

        monkeypatch.setattr(store, "task", down)
        version = await server.publish(prompt_bytes(favours=1))
        await eventually(lambda: server.counted("store_sync_failures_total", code="store_unavailable") >= 2)
        assert (await server.classify()).status_code == 200
        assert (await server.public.get("/readyz")).status_code == 200
        monkeypatch.setattr(store, "task", real)
        await eventually(lambda: server.apps.service.catalogue.get("sentiment").current() == version)


async def test_requests_in_flight_finish_on_the_version_they_started_with(
    start: Start, eventually: Eventually
) -> None:
    """Hundreds of requests while the alias moves to and fro: each answer is whole and of one version."""
    async with start(backbone=FakeBackbone(delay=0.002), prompt_cache_bytes=0) as server:
        label_of = {version_of(prompt_bytes(favours=favours)): favours for favours in (0, 1)}
        await server.apps.service.store.publish(prompt_bytes(favours=1))
        seen = []

        async def ask() -> None:
            while len(seen) < 300:
                answer = (await server.classify(["x y"] * 5)).json()
                labels = {row["label"] for row in answer["data"]}
                assert labels == {("negative", "positive")[label_of[answer["version"]]]}
                seen.append(answer["version"])

        async def move() -> None:
            at = 0
            while len(seen) < 300:
                at = 1 - at
                await server.publish(prompt_bytes(favours=at))
                await server.apps.service.sync.refresh("sentiment")

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(ask())
            group.create_task(move())
        assert set(seen) == set(label_of)


async def test_weighted_targets_share_by_request_id(start: Start) -> None:
    async with start(task=False) as server:
        store = server.apps.service.store
        versions = [version_of(prompt_bytes(favours=at)) for at in (0, 1)]
        for at in (0, 1):
            await store.publish(prompt_bytes(favours=at))
        targets = [Target(versions[0], 9), Target(versions[1], 1)]
        await store.set_alias("sentiment", "current", targets, expected_revision=0)
        await server.apps.service.sync.refresh("sentiment")
        drawn = {
            number: (await server.classify(request_id=f"r{number}")).json()["version"]
            for number in range(300)
        }
        share = sum(version == versions[1] for version in drawn.values())
        assert 10 <= share <= 60
        again = (await server.classify(request_id="r7")).json()["version"]
        assert again == drawn[7]
        keyed = [
            (
                await server.public.post(
                    "/classify",
                    json={"task_id": "sentiment", "input": "x"},
                    headers={"X-Request-Key": "r7", "X-Request-ID": f"other-{number}"},
                )
            ).json()["version"]
            for number in range(20)
        ]
        assert set(keyed) == {drawn[7]}  # whatever the request's own id is
        models = (await server.public.get("/v1/models")).json()["data"]
        assert models[0]["version"] == versions[0]


async def test_an_alias_and_a_digest_name_versions(start: Start) -> None:
    async with start() as server:
        old = (await server.classify()).json()["version"]
        canary = await server.publish(prompt_bytes(favours=1), alias="canary")
        await server.apps.service.sync.refresh("sentiment")
        assert (await server.classify()).json()["version"] == old
        assert (await server.classify(version="canary")).json()["version"] == canary
        answer = await server.classify(version=canary)
        assert answer.headers["x-prompt-version"] == canary
        for version, code in [
            ("nope", "unknown_alias"),
            ("0" * 64, "unknown_version"),
            ("No/pe", "invalid_alias"),
        ]:
            answer = await server.classify(version=version)
            assert answer.json()["code"] == code, version


async def test_many_tasks_are_followed_at_once(start: Start, eventually: Eventually) -> None:
    async with start() as server:
        names = [f"t{number}" for number in range(40)]
        for name in names:
            await server.publish(prompt_bytes(name), name)
        catalogue = server.apps.service.catalogue
        await eventually(lambda: sum(task.current() is not None for task in catalogue) == 41)
        answers = await asyncio.gather(*(server.classify(task_id=name) for name in names))
        assert {answer.status_code for answer in answers} == {200}


def away(store: Path) -> None:
    """A file where the store's folder was: nothing of it can be opened, not even by root."""
    store.rename(store.with_name("store.away"))
    store.write_text("")


def back(store: Path) -> None:
    store.unlink()
    store.with_name("store.away").rename(store)


async def test_the_view_follows_and_says_how_old_it_is(start: Start, eventually: Eventually) -> None:
    async with start() as server:
        receipt = await server.apps.service.store.publish(prompt_bytes("new"))
        assert await server.apps.service.sync._view.reached(receipt.revision, 2.0)
        assert server.counted("store_revision") == receipt.revision.number
        view = server.apps.service.sync._view
        view.advance(receipt.revision, time.monotonic() - 100.0)
        assert (await server.public.get("/readyz")).json()["store"]["staleness_seconds"] > 50
        await eventually(lambda: view.staleness < 50)  # a step that brought nothing new says so, too
        ready = (await server.public.get("/readyz")).json()
        assert ready["status"] == "ready"
        assert ready["store"].items() >= {"epoch": receipt.revision.epoch, "source": "store"}.items()
        assert ready["tiers"]["device"]["entries"] == 1
        assert ready["tiers"]["host"]["bytes"] > 0
        assert ready["tiers"]["disk"] is None


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


async def idle(_: PromptSync | Warming) -> None:
    """In the place of work in the background, where a test takes the steps itself."""


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
