"""`min_revision`: what is waited for, for how long, and what is refused."""

import asyncio
from pathlib import Path

import pytest

from prompt_store import Golden
from tests.server.conftest import Eventually, Running, Start
from tests.server.fakes import prompt_bytes


async def stand(server: Running) -> str:
    revision = await server.apps.service.store.revision()
    return f"{revision.epoch}:{revision.number}"


async def test_a_revision_of_a_lost_history_is_refused_at_once(
    start: Start, eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine._REACH_SECONDS", 600.0)
    async with start() as server:
        epoch, number = (await stand(server)).split(":")
        waits = asyncio.create_task(server.classify(min_revision=f"{epoch}:{int(number) + 9}"))
        await eventually(lambda: bool(server.apps.service.boundaries[0].in_flight))
        (tmp_path / "store").rename(tmp_path / "emptied")
        async with asyncio.timeout(120):
            for answer in (await waits, await server.classify(min_revision=f"{epoch}:{number}")):
                assert (answer.status_code, answer.json()["code"]) == (412, "revision_lost")
                assert "Retry-After" not in answer.headers
                assert epoch not in answer.text


async def test_who_waits_for_a_revision_takes_up_room(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine._REACH_SECONDS", 600.0)
    async with start(max_queue_rows=4, max_inputs=1) as server:
        wanted = {"min_revision": "0ther:1"}
        waiting = [
            asyncio.create_task(server.classify(**wanted)) for _ in range(3)
        ]  # one task: three quarters
        await eventually(lambda: server.counted("queue_rows") == 3)
        async with asyncio.timeout(120):
            assert (await server.classify(**wanted)).status_code == 429
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        await eventually(lambda: server.counted("queue_rows") == 0)
        assert (await server.classify()).status_code == 200


async def test_what_was_refused_later_than_the_demanded_revision_does_not_matter(start: Start) -> None:
    async with start() as server:
        before = await stand(server)
        old = (await server.classify()).json()["version"]
        await server.publish(prompt_bytes(favours=1, golden=[Golden(text="x", label="negative")]))
        await server.apps.service.sync.refresh("sentiment")
        since = await stand(server)
        # Another bad version in its place: the alias still lags since the first.
        await server.publish(prompt_bytes(favours=1, golden=[Golden(text="y", label="negative")]))
        await server.apps.service.sync.refresh("sentiment")
        answer = await server.classify(min_revision=before)
        assert (answer.status_code, answer.json()["version"]) == (200, old)
        answer = await server.classify(min_revision=since)
        assert (answer.status_code, answer.json()["code"]) == (503, "prompt_unavailable")


async def test_an_answer_does_not_repeat_what_the_caller_wrote(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine._REACH_SECONDS", 0.0)
    async with start() as server:
        answer = await server.classify(min_revision="0ther:12345")
        assert answer.json()["code"] == "revision_not_reached"
        assert "0ther" not in answer.text
