import asyncio
import time
from pathlib import Path

import pytest

from prompt_store import BackboneRef, Golden, StoreUnavailable, Target, version_of
from tests.server.conftest import Eventually, Start
from tests.server.fakes import REF, FakeBackbone, prompt_bytes

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
