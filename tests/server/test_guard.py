"""Automatic rollback, through the apps: which version is guilty, and what is nobody's fault."""

from collections import Counter
from collections.abc import Sequence

import pytest

from prompt_store import CorruptVersion, Target, version_of
from server.guard import ACTOR
from tests.server.conftest import Eventually, Start
from tests.server.fakes import BRITTLE, FakeBackbone, FakeDevicePrompt, FakeRow, prompt_bytes
from tests.server.splits import NAN, OTHER, RAISING, STABLE, ask, ask_many, leads_to, settled, split, targets


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
