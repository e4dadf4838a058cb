import asyncio
import time

import pytest

from prompt_store import Revision
from server.metrics import Metrics
from server.view import View, parse_revision, revision_text


@pytest.fixture
async def view(metrics: Metrics) -> View:
    return View(metrics)


async def test_it_only_goes_forward(view: View) -> None:
    view.advance(Revision("e", 5), time.monotonic())
    view.advance(Revision("e", 4), time.monotonic())
    view.advance(Revision("other", 9), time.monotonic())
    assert (view.revision, view.text, view.losses) == (Revision("e", 5), "e:5", 0)


async def test_a_lost_history_is_counted_and_taken(view: View) -> None:
    view.advance(Revision("e", 5), time.monotonic())
    assert view.goes_back(Revision("e", 4))
    assert view.goes_back(Revision("other", 9))
    assert not view.goes_back(Revision("e", 6))
    view.advance(Revision("other", 1), time.monotonic(), lost=True)
    assert (view.text, view.losses) == ("other:1", 1)


async def test_waiters_wake_when_the_revision_comes(view: View) -> None:
    waiting = asyncio.create_task(view.reached(Revision("e", 7), 10))
    for number in (5, 6):
        view.advance(Revision("e", number), time.monotonic())
        await asyncio.sleep(0)
    assert not waiting.done()
    view.advance(Revision("e", 8), time.monotonic())
    assert await waiting


async def test_a_revision_that_does_not_come(view: View) -> None:
    view.advance(Revision("e", 5), time.monotonic())
    assert await view.reached(Revision("e", 5), 0)
    assert not await view.reached(Revision("e", 6), 0.01)
    assert not await view.reached(Revision("other", 1), 0.01)


async def test_a_revision_of_a_former_epoch_is_waited_for_no_longer(view: View) -> None:
    view.recall(Revision("e", 5), 100.0)
    async with asyncio.timeout(120):
        waiting = asyncio.create_task(view.reached(Revision("e", 7), 600))
        await asyncio.sleep(0)
        view.advance(Revision("new", 1), time.monotonic(), lost=True)
        assert not await waiting
        assert not await view.reached(Revision("e", 5), 600)
    assert view.is_lost(Revision("e", 5))
    assert not view.is_lost(Revision("unknown", 5))
    view.advance(Revision("e", 3), time.monotonic(), lost=True)  # a backup of the old one
    assert not view.is_lost(Revision("e", 5))
    assert view.is_lost(Revision("new", 1))


async def test_a_snapshot_is_as_old_as_it_is(view: View, metrics: Metrics) -> None:
    view.recall(Revision("e", 5), 100.0)
    assert view.source == "snapshot"
    assert view.staleness >= 100
    assert metrics.registry.get_sample_value("promptmux_serving_snapshot") == 1
    assert metrics.registry.get_sample_value("promptmux_store_revision") == 5
    before = view.staleness
    view.advance(Revision("e", 5), time.monotonic())
    assert view.source == "store"
    assert view.staleness < before
    assert metrics.registry.get_sample_value("promptmux_serving_snapshot") == 0


def test_revisions_as_text() -> None:
    assert parse_revision(revision_text(Revision("ab-12", 7))) == Revision("ab-12", 7)
    for bad in (
        "",
        ":",
        "7",
        "e:",
        ":7",
        "e:-1",
        "e:٣",
        "e:1.0",
        "e e:1",
        "e" * 65 + ":1",
        "e:" + "1" * 19,
        "é:1",
    ):
        with pytest.raises(ValueError, match="expected <epoch>:<number>"):
            parse_revision(bad)
