"""Splits, promotion and automatic rollback, through the apps."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from prompt_store import CorruptVersion, StoreUnavailable, Target, TaskRecord, version_of
from server.guard import ACTOR
from tests.server.conftest import Running, Start
from tests.server.fakes import (
    BRITTLE,
    EXPLOSIVE,
    FakeBackbone,
    FakeDevicePrompt,
    FakeRow,
    prompt_bytes,
)

Eventually = Callable[[Callable[[], bool | Awaitable[bool]]], Awaitable[None]]
STABLE, OTHER = prompt_bytes(), prompt_bytes(favours=1)
NAN = prompt_bytes(favours=1, bias=BRITTLE)
RAISING = prompt_bytes(favours=1, bias=EXPLOSIVE)


class ShortOfMemory(FakeBackbone):
    """One whose first forward of each text under a prompt that favours the second label raises."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[FakeRow] = set()

    def score_on_lane(
        self, rows: Sequence[FakeRow], prompts: Sequence[FakeDevicePrompt], *, alone: bool = False
    ) -> list[tuple[float, ...]]:
        new = {row for row, prompt in zip(rows, prompts, strict=True) if prompt.bias[1]} - self._seen
        if any("quick" not in row.words for row in new):  # the rehearsal comes out right
            self._seen |= new
            raise MemoryError
        return super().score_on_lane(rows, prompts, alone=alone)


async def split(
    server: Running, *shares: tuple[bytes, int], task_id: str = "sentiment", alias: str = "current"
) -> None:
    """As an operator does: straight into the store, and seen by this server."""
    store = server.apps.service.store
    for data, _ in shares:
        await store.publish(data)
    targets = [Target(version_of(data), weight) for data, weight in shares]
    await store.set_alias(task_id, alias, targets, expected_revision=None, actor="operator")
    await server.apps.service.sync.refresh(task_id)


async def ask(server: Running, number: int, text: str = "x y", task_id: str = "sentiment") -> httpx.Response:
    body = {"task_id": task_id, "input": f"{text} {number}"}
    return await server.public.post("/classify", json=body, headers={"X-Request-Key": f"user-{number}"})


async def ask_many(server: Running, numbers: Sequence[int], text: str = "x y") -> list[httpx.Response]:
    return list(await asyncio.gather(*(ask(server, number, text) for number in numbers)))


async def targets(server: Running, alias: str = "current") -> list[str]:
    record = await server.apps.service.store.task("sentiment")
    return [target.version for target in record.aliases[alias].targets]


async def leads_to(server: Running, data: bytes) -> bool:
    return await targets(server) == [version_of(data)]


async def settled(server: Running) -> None:
    """Whatever was to be checked has been checked."""
    guard = server.apps.service.guard
    while guard._checks:
        await asyncio.wait(guard._checks)
    await asyncio.sleep(0)


@pytest.mark.parametrize(("bad", "code"), [(NAN, "numerical_error"), (RAISING, "inference_failed")])
async def test_a_canary_that_fails_is_taken_out_and_nobody_else_notices(
    start: Start, eventually: Eventually, bad: bytes, code: str
) -> None:
    async with start(backbone=FakeBackbone(delay=0.002)) as server:
        await split(server, (STABLE, 80), (bad, 20))
        stable, canary = version_of(STABLE), version_of(bad)
        failed: list[str] = []
        for begin in range(0, 120, 8):
            for answer in await ask_many(server, range(begin, begin + 8)):
                if answer.status_code != 200:
                    failed.append(answer.json()["code"])
                else:
                    assert answer.json()["version"] == stable
        assert set(failed) == {code}
        assert 3 <= len(failed) <= 10  # three, and those that were under way with them
        await eventually(lambda: leads_to(server, STABLE))
        record = await server.apps.service.store.task("sentiment")
        assert record.aliases["current"].targets == (Target(stable),)
        newest = (await server.admin.get("/admin/tasks/sentiment/history")).json()["events"][0]
        assert (newest["actor"], newest["action"]) == (ACTOR, "alias")
        assert newest["detail"]["targets"] == [[stable, 1]]
        assert server.counted("auto_rollbacks_total", code=code) == 1
        assert server.counted("quarantined_versions_total", code=code) == 1
        await eventually(lambda: not server.apps.service.guard._trials.of("sentiment"))
        assert (
            await server.classify(version=canary)
        ).status_code == 500  # still there for whoever looks into it


async def test_a_text_that_no_version_can_take_is_nobodys_fault(start: Start) -> None:
    async with start() as server:
        await split(server, (STABLE, 50), (OTHER, 50))
        for text in ("not-a-number", "explode"):
            answers = await ask_many(server, range(40), text)
            assert {answer.status_code for answer in answers} == {500}
        await settled(server)
        assert await targets(server) == [version_of(STABLE), version_of(OTHER)]
        assert {(await ask(server, n)).json()["version"] for n in range(20)} == {
            version_of(STABLE),
            version_of(OTHER),
        }
        assert server.counted("quarantined_versions_total", code="numerical_error") == 0


async def test_a_version_that_fails_once_and_then_works_is_not_guilty(start: Start) -> None:
    async with start(backbone=ShortOfMemory()) as server:
        await split(server, (STABLE, 50), (OTHER, 50))
        answers = [await ask(server, number) for number in range(40)]
        await settled(server)
        assert sum(answer.status_code == 500 for answer in answers) > 5
        guard = server.apps.service.guard
        assert not guard._trials.of("sentiment")["current"].faults
        assert guard.quarantined("sentiment", "current") == {}
        assert len(await targets(server)) == 2


async def test_a_version_that_could_not_be_loaded_once_is_not_guilty(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many requests hear of one try: the cache remembers it for a while."""
    monkeypatch.setattr("server.prompt_cache._RETRY_FAILED_AFTER", 0.2)
    monkeypatch.setattr("server.guard._LOAD_AGAIN_SECONDS", 0.3)
    async with start(prompt_cache_bytes=0, host_cache_bytes=0) as server:
        await split(server, (STABLE, 50), (OTHER, 50))
        store = server.apps.service.store
        real, failed = store.get, []

        async def get(task_id: str, version: str) -> bytes:
            if version == version_of(OTHER) and not failed:
                failed.append(version)
                raise CorruptVersion("misread")
            return await real(task_id, version)

        monkeypatch.setattr(store, "get", get)
        answers = await ask_many(server, range(40))
        assert sum(answer.status_code == 503 for answer in answers) > 5
        await settled(server)
        assert failed
        assert not server.apps.service.guard._trials.of("sentiment")["current"].faults
        assert len(await targets(server)) == 2


async def test_when_all_versions_fail_nothing_is_moved(start: Start) -> None:
    async with start() as server:
        await split(server, (NAN, 50), (prompt_bytes(bias=BRITTLE), 50))
        answers = await ask_many(server, range(40))
        assert {answer.json()["code"] for answer in answers} == {"numerical_error"}
        await settled(server)
        assert len(await targets(server)) == 2


async def test_the_stable_version_can_be_the_one_that_fails(start: Start, eventually: Eventually) -> None:
    async with start() as server:
        await split(server, (NAN, 95), (OTHER, 5))
        for begin in range(0, 24, 4):
            await ask_many(server, range(begin, begin + 4))
        await eventually(lambda: leads_to(server, OTHER))
        await eventually(
            lambda: server.apps.service.catalogue.get("sentiment").current() == version_of(OTHER)
        )
        assert {(await ask(server, number)).status_code for number in range(40)} == {200}


async def test_of_three_two_may_fail(start: Start, eventually: Eventually) -> None:
    async with start() as server:
        await split(server, (STABLE, 40), (NAN, 30), (RAISING, 30))
        for begin in range(0, 200, 5):
            await ask_many(server, range(begin, begin + 5))
        await eventually(lambda: leads_to(server, STABLE))
        assert {(await ask(server, number)).status_code for number in range(40)} == {200}


async def test_a_canary_whose_bytes_are_damaged_is_taken_out(
    start: Start, eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prompt_cache._RETRY_FAILED_AFTER", 0.0)
    monkeypatch.setattr("server.guard._LOAD_AGAIN_SECONDS", 0.0)
    async with start(prompt_cache_bytes=0, host_cache_bytes=0) as server:  # loaded anew for every request
        await split(server, (STABLE, 50), (OTHER, 50))
        name = version_of(OTHER)
        (blob,) = (path for path in (tmp_path / "store").rglob(f"*{name}*") if path.is_file())
        blob.chmod(0o600)
        blob.write_bytes(b"damaged")
        await ask_many(server, range(30))
        for number in range(30, 60):
            await ask(server, number)
        await eventually(lambda: leads_to(server, STABLE))
        assert server.counted("auto_rollbacks_total", code="prompt_unavailable") == 1


async def test_a_store_that_is_away_is_no_versions_fault(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prompt_cache._RETRY_FAILED_AFTER", 0.0)
    async with start(prompt_cache_bytes=0, host_cache_bytes=0) as server:
        await split(server, (STABLE, 50), (OTHER, 50))
        store = server.apps.service.store
        real = store.get

        async def down(task_id: str, version: str) -> bytes:
            if version == version_of(OTHER):
                raise StoreUnavailable("down")
            return await real(task_id, version)

        monkeypatch.setattr(store, "get", down)
        answers = await ask_many(server, range(40))
        assert sum(answer.status_code == 503 for answer in answers) > 5
        await settled(server)
        assert len(await targets(server)) == 2


async def test_a_store_that_is_away_gets_it_later(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        await split(server, (STABLE, 50), (NAN, 50))
        store = server.apps.service.store
        real, tries = store.set_alias, 0

        async def down(*_: Any, **__: Any) -> Any:
            nonlocal tries
            tries += 1
            raise StoreUnavailable("down")

        monkeypatch.setattr(store, "set_alias", down)
        for begin in range(0, 40, 4):
            await ask_many(server, range(begin, begin + 4))
        await eventually(lambda: tries >= 2)
        # It holds here, whatever the store says.
        assert {(await ask(server, number)).status_code for number in range(40)} == {200}
        shown = (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"]
        assert shown["quarantined"] == {version_of(NAN): "numerical_error"}
        assert shown["serving"] == [version_of(STABLE)]
        assert len(shown["targets"]) == 2
        monkeypatch.setattr(store, "set_alias", real)
        await eventually(lambda: leads_to(server, STABLE))


async def test_a_task_that_cannot_be_moved_does_not_hold_up_another(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.guard._RETRY_SECONDS", (3600.0,))
    async with start() as server:
        other = [prompt_bytes("other", favours=at, bias=bias) for at, bias in ((0, 2.0), (1, BRITTLE))]
        await split(server, (other[0], 50), (other[1], 50), task_id="other")
        await split(server, (STABLE, 50), (NAN, 50))
        store = server.apps.service.store
        real, tries = store.task, []

        async def task(task_id: str) -> TaskRecord:
            if task_id == "other":
                tries.append(task_id)
                raise StoreUnavailable("down")
            return await real(task_id)

        monkeypatch.setattr(store, "task", task)
        for number in range(40):
            await ask(server, number, task_id="other")
        await eventually(lambda: bool(tries))
        for number in range(40):
            await ask(server, number)
        await eventually(lambda: leads_to(server, STABLE))


async def test_who_puts_a_version_back_before_this_server_has_looked_gets_it_served(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        await split(server, (STABLE, 50), (NAN, 50))
        service = server.apps.service
        both = service.catalogue.targets("sentiment", "current")
        real = service.store.set_alias
        put_back = []

        async def move(task_id: str, alias: str, wanted: Any, *, expected_revision: Any, actor: str) -> Any:
            if actor != ACTOR or put_back:
                return await real(task_id, alias, wanted, expected_revision=expected_revision, actor=actor)
            async with service.sync._tasks._lock(task_id):  # no refresh between the two
                moved = await real(task_id, alias, wanted, expected_revision=expected_revision, actor=actor)
                put_back.append(await real(task_id, alias, both, expected_revision=None, actor="operator"))
            return moved

        monkeypatch.setattr(service.store, "set_alias", move)
        for begin in range(0, 40, 4):
            await ask_many(server, range(begin, begin + 4))
        await eventually(lambda: bool(put_back))
        await settled(server)
        await eventually(lambda: service.guard.quarantined("sentiment", "current") == {})
        assert service.catalogue.targets("sentiment", "current") == both
        assert len(await targets(server)) == 2
        for number in range(40, 80):  # it is on trial as before
            await ask(server, number)
        await eventually(lambda: leads_to(server, STABLE))


async def test_somebody_who_was_faster_is_respected(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        await split(server, (STABLE, 50), (NAN, 50))
        store = server.apps.service.store
        real = store.set_alias
        raced = []

        async def race(task_id: str, alias: str, wanted: Any, *, expected_revision: Any, actor: str) -> Any:
            if actor == ACTOR and not raced:
                raced.append(wanted)
                moved = [Target(version_of(STABLE), 99), Target(version_of(NAN), 1)]
                await real(task_id, alias, moved, expected_revision=None, actor="operator")
            return await real(task_id, alias, wanted, expected_revision=expected_revision, actor=actor)

        monkeypatch.setattr(store, "set_alias", race)
        for begin in range(0, 40, 4):
            await ask_many(server, range(begin, begin + 4))
        await eventually(lambda: leads_to(server, STABLE))
        actors = [event.actor for event in await store.history("sentiment")][:2]
        assert actors == [ACTOR, "operator"]
        assert raced


async def test_two_servers_that_find_the_same_move_it_once(start: Start, eventually: Eventually) -> None:
    async with start() as one, start(task=False) as two:
        await split(one, (STABLE, 50), (NAN, 50))
        await two.apps.service.sync.refresh("sentiment")
        await asyncio.gather(*(ask_many(server, range(30)) for server in (one, two)))
        await eventually(lambda: leads_to(one, STABLE))
        await asyncio.gather(settled(one), settled(two))
        for server in (one, two):
            await eventually(lambda server=server: not server.apps.service.guard._trials.of("sentiment"))
        events = await one.apps.service.store.history("sentiment")
        assert [event.actor for event in events].count(ACTOR) == 1


async def test_it_can_be_switched_off(start: Start) -> None:
    async with start(canary_max_errors=0) as server:
        await split(server, (STABLE, 50), (NAN, 50))
        statuses = Counter(answer.status_code for answer in await ask_many(server, range(60)))
        assert statuses[500] > 10
        assert len(await targets(server)) == 2


async def test_a_version_that_was_just_made_current_goes_back_to_the_one_before(
    start: Start, eventually: Eventually
) -> None:
    async with start() as server:
        await split(server, (NAN, 1))
        for number in range(3):
            assert (await ask(server, number)).status_code == 500
        await eventually(lambda: leads_to(server, STABLE))
        assert (await ask(server, 0)).json()["version"] == version_of(STABLE)


async def test_servers_do_not_move_an_alias_to_and_fro(start: Start, eventually: Eventually) -> None:
    async with start() as server:
        await split(server, (OTHER, 1))
        # What another server, which saw OTHER fail, does: this one has no reason to think that it was right.
        store = server.apps.service.store
        await store.publish(NAN)
        await store.set_alias(
            "sentiment", "current", [Target(version_of(NAN))], expected_revision=None, actor=ACTOR
        )
        await server.apps.service.sync.refresh("sentiment")
        for number in range(3):
            assert (await ask(server, number)).status_code == 500
        await settled(server)
        await eventually(lambda: not server.apps.service.guard._trials.of("sentiment"))
        assert await leads_to(server, NAN)
        assert (await ask(server, 5)).status_code == 500


async def test_the_callers_own_mistakes_are_counted_and_blamed_on_nobody(start: Start) -> None:
    async with start() as server:
        await split(server, (STABLE, 50), (OTHER, 50))
        pair = [{"text": "a", "text_pair": "b"}]
        for number in range(20):
            assert (await server.classify(pair, request_id=f"r{number}")).status_code == 422
        await settled(server)
        shown = (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"]
        errors = [target["traffic"]["errors"] for target in shown["targets"]]
        assert sum(one["invalid_request"] for one in errors) == 20
        assert shown["quarantined"] == {}
        assert len(await targets(server)) == 2


async def test_traffic_of_a_split_is_shown_and_scraped(start: Start) -> None:
    async with start() as server:
        await server.classify()
        plain = (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"]["targets"]
        assert "traffic" not in plain[0]
        await split(server, (STABLE, 50), (OTHER, 50))
        answers = await ask_many(server, range(40))
        drawn = Counter(answer.json()["version"] for answer in answers)
        shown = (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"]["targets"]
        for target in shown:
            counted = target["traffic"]
            assert counted["requests"] == counted["scores"]["texts"] == drawn[target["version"]] > 5
            assert 0.8 < counted["scores"]["mean"] <= 1.0
            labels = {"task": "sentiment", "version": target["version"][:12]}
            assert server.counted("version_requests_total", **labels) == counted["requests"]
        text = (await server.admin.get("/metrics")).text
        assert "promptmux_version_score_bucket" in text
        await split(server, (STABLE, 1))
        assert 'task="sentiment"' not in (await server.admin.get("/metrics")).text


async def test_a_listed_task_has_series_without_a_split(start: Start) -> None:
    async with start(metrics_tasks=("sentiment",)) as server:
        await server.classify(["a", "b", "c"])
        labels = {"task": "sentiment", "version": version_of(STABLE)[:12]}
        assert server.counted("version_requests_total", **labels) == 1
        assert server.counted("version_score_count", **labels) == 3


async def test_promotion(start: Start) -> None:
    async with start() as server:
        await split(server, (STABLE, 95), (OTHER, 5))
        path = "/admin/tasks/sentiment/promote"
        tag = (await server.admin.get("/admin/tasks/sentiment/aliases/current")).headers["etag"]
        body = {"version": version_of(OTHER)}

        async def promote(
            body: dict[str, Any], headers: dict[str, str], **params: Any
        ) -> tuple[int, dict[str, Any]]:
            answer = await server.admin.post(path, json=body, headers=headers, params=params)
            return answer.status_code, answer.json()

        status, answer = await promote(body, {})
        assert (status, answer["code"]) == (428, "precondition_required")
        status, answer = await promote(body, {"If-Match": '"1"'})
        assert (status, answer["code"]) == (412, "revision_conflict")
        await server.apps.service.store.publish(NAN)
        status, answer = await promote({"version": version_of(NAN)}, {"If-Match": tag})
        assert (status, answer["code"]) == (422, "invalid_request")
        for bad in ({}, {"version": "x"}, {**body, "alias": "Bad!"}, {**body, "weight": 1}):
            assert (await promote(bad, {"If-Match": tag}))[0] == 422
        assert (await promote({**body, "alias": "nope"}, {"If-Match": tag}))[0] == 404
        status, answer = await promote(body, {"If-Match": tag}, dry_run=True)
        assert (status, answer["dry_run"], answer["version"]) == (200, True, version_of(OTHER))
        assert len(await targets(server)) == 2
        status, answer = await promote(body, {"If-Match": tag})
        assert (status, answer["version"]) == (200, version_of(OTHER))
        assert {(await ask(server, number)).json()["version"] for number in range(20)} == {version_of(OTHER)}
        assert (await promote(body, {"If-Match": tag}))[0] == 412
