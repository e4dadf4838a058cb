import asyncio

import pytest

from server.warming import Warming
from tests.server.conftest import Eventually, Start


async def test_a_part_that_dies_is_logged_and_counted(
    start: Start, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def dies(_: Warming) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Warming, "run", dies)
    async with start() as server:
        await eventually(lambda: server.counted("background_failures_total", part="warming") == 1)
        assert (await server.classify()).status_code == 200
    assert "background_part_died" in capsys.readouterr().out
    assert server.counted("background_failures_total", part="sync") == 0  # that was ended, and did not die
