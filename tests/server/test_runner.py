import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from prompt_store import BackboneRef, IncompatiblePrompt, decode_prompt
from server.batch_queue import Scored
from server.batcher import Batcher, Limits
from server.errors import PROMPT_FAULTS, InferenceFailed, Unavailable
from server.metrics import Metrics
from server.runner import Runner
from tests.server.conftest import Eventually
from tests.server.fakes import REF, FakeBackbone, FakeRow, prompt_bytes

PROMPT = decode_prompt(prompt_bytes(favours=1))


def row(text: str = "x") -> FakeRow:
    return FakeRow(tuple(text.split()), len(text.split()), truncated=False)


class Device:
    def __init__(self, batcher: Batcher[Any], runner: Runner, backbone: FakeBackbone) -> None:
        self.batcher, self.runner, self.backbone = batcher, runner, backbone


@pytest.fixture
async def device(metrics: Metrics) -> AsyncIterator[Device]:
    loop = asyncio.get_running_loop()
    batcher: Batcher[Any] = Batcher(Limits(1000, 100, 100.0, 1000, 10_000), metrics, loop=loop)
    runner, backbone = Runner(batcher, loop=loop), FakeBackbone()
    await runner.start(lambda: backbone)  # type: ignore[arg-type, return-value]
    yield Device(batcher, runner, backbone)
    assert await runner.stop(patience=20)


async def test_a_batch_is_scored_under_the_slots_it_names(device: Device) -> None:
    await device.runner.load(7, PROMPT)
    await device.runner.load(8, decode_prompt(prompt_bytes(favours=0)))
    seven, eight = await asyncio.gather(device.batcher.submit([row()], 7), device.batcher.submit([row()], 8))
    assert seven.scores[0][1] > 0.8
    assert eight.scores[0][0] > 0.8


async def test_a_load_scores_its_rows_at_once(device: Device) -> None:
    nbytes, scores = await device.runner.load(1, PROMPT, [row(), row("b")])
    assert nbytes > 0
    assert [round(sum(row), 6) for row in scores] == [1.0, 1.0]


async def test_a_load_does_not_wait_for_the_queue(device: Device) -> None:
    await device.runner.load(1, PROMPT)
    device.backbone.delay = 0.05
    waiting = [asyncio.create_task(device.batcher.submit([row()] * 100, 1)) for _ in range(8)]
    await asyncio.sleep(0.02)  # the lanes have begun
    await device.runner.load(2, PROMPT)
    assert not all(task.done() for task in waiting)
    await asyncio.gather(*waiting)


async def test_a_load_that_fails_leaves_the_slot_empty(device: Device) -> None:
    other = BackboneRef.model_validate({**REF.model_dump(), "fingerprint": "0" * 64})
    with pytest.raises(IncompatiblePrompt):
        await device.runner.load(1, decode_prompt(prompt_bytes(ref=other)))
    with pytest.raises(RuntimeError):
        await device.runner.load(1, PROMPT, [row("explode")])
    with pytest.raises(InferenceFailed):
        await device.batcher.submit([row()], 1)


async def test_a_load_whose_caller_goes_leaves_nothing(device: Device, eventually: Eventually) -> None:
    """Neither one that a lane is at, nor one that waits for a lane."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        begun.release()
        go_on.wait(20)

    device.backbone.meet = wait
    loads = [asyncio.create_task(device.runner.load(slot, PROMPT, [row()])) for slot in (1, 2, 3)]
    for _ in range(device.backbone.lanes):
        await asyncio.to_thread(begun.acquire)
    for load in loads:
        load.cancel()
    await asyncio.gather(*loads, return_exceptions=True)
    device.runner._dropped.clear()  # as a lane does that has nothing else to do
    go_on.set()
    both = threading.Barrier(2)
    device.backbone.meet = lambda: both.wait(20)
    # When both lanes are at these, they are done with the others.
    await asyncio.gather(*(device.runner.load(slot, PROMPT, [row()]) for slot in (4, 5)))
    assert set(device.runner._prompts) == {4, 5}
    assert len(device.backbone.batches) == 4  # the third one was not run for nobody


async def test_the_thread_outlives_a_forward_that_raises(device: Device) -> None:
    await device.runner.load(1, PROMPT)
    for _ in range(3):
        with pytest.raises(InferenceFailed):
            await device.batcher.submit([row("explode")], 1)
    assert (await device.batcher.submit([row()], 1)).scores


async def every_lane_held(
    device: Device, eventually: Any
) -> tuple[threading.Event, list[asyncio.Task[Scored]]]:
    """A row on each lane, whose forwards last until the event is set."""
    go, busy, before = threading.Event(), [], len(device.backbone.batches)
    device.backbone.meet = lambda: go.wait(120)
    for lane in range(1, device.backbone.lanes + 1):
        busy.append(asyncio.create_task(device.batcher.submit([row()], 1)))
        await eventually(lambda lane=lane: len(device.backbone.batches) == before + lane)
    return go, busy


@pytest.mark.parametrize("guilty", [{0}, {4}, {9}, {0, 1, 5}, set(range(10))])
async def test_of_a_batch_that_raises_only_the_guilty_fail(
    device: Device, metrics: Metrics, guilty: set[int], eventually: Any
) -> None:
    await device.runner.load(1, PROMPT)
    await device.runner.load(2, decode_prompt(prompt_bytes(favours=0)))
    # All in one batch: a row keeps each lane until they are there.
    go, busy = await every_lane_held(device, eventually)
    jobs = [
        device.batcher.submit([row("a"), row("explode" if caller in guilty else "b")], 1 + caller % 2)
        for caller in range(10)
    ]
    waiting = asyncio.gather(*jobs, return_exceptions=True)
    await asyncio.sleep(0.01)
    go.set()
    results = await waiting
    assert {at for at, result in enumerate(results) if isinstance(result, InferenceFailed)} == guilty
    for caller in set(range(10)) - guilty:
        result = results[caller]
        assert isinstance(result, Scored)
        assert all((scores[1] > 0.8) == (caller % 2 == 0) for scores in result.scores)
    assert metrics.registry.get_sample_value("promptmux_forward_failures_total") in (1.0, 2.0)  # lanes share
    await asyncio.gather(*busy)


async def test_a_device_that_is_gone_does_not_keep_its_lane_for_long(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it gave up is not said to have failed: a prompt would be blamed for it."""
    monkeypatch.setattr("server.runner._APART_SECONDS", -1.0)
    await device.runner.load(1, PROMPT)

    def broken() -> None:
        raise RuntimeError("gone")

    device.backbone.meet = broken
    results = await asyncio.gather(
        *(device.batcher.submit([row()], 1) for _ in range(50)), return_exceptions=True
    )
    assert all(type(result) is Unavailable for result in results)
    assert not isinstance(results[0], PROMPT_FAULTS)
    assert len(device.backbone.batches) <= 4


def test_a_lane_whose_caller_went_with_the_loop_ends_in_silence(metrics: Metrics) -> None:
    async def leave() -> tuple[Runner, asyncio.Future[object]]:
        loop = asyncio.get_running_loop()
        return Runner(
            Batcher(Limits(10, 10, 100.0, 10, 10), metrics, loop=loop), loop=loop
        ), loop.create_future()

    def broken() -> None:
        raise RuntimeError("gone")

    runner, future = asyncio.run(leave())
    runner._answer(lambda: 1, future)  # what it raised, its thread would print at the end of the process
    runner._answer(broken, future)


async def test_a_backbone_that_cannot_be_loaded_says_so(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    runner = Runner(Batcher(Limits(10, 10, 100.0, 10, 10), metrics, loop=loop), loop=loop)

    def load() -> Any:
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        await runner.start(load)
    assert await runner.stop(patience=20)


async def test_a_slot_that_was_dropped_fails_its_own_row_only(device: Device, eventually: Any) -> None:
    await device.runner.load(1, PROMPT)
    await device.runner.load(2, PROMPT)
    device.runner.drop(2)
    # Both in one batch: a third caller's row keeps each lane until they are there.
    go, busy = await every_lane_held(device, eventually)
    waiting = asyncio.gather(
        device.batcher.submit([row()], 1), device.batcher.submit([row()], 2), return_exceptions=True
    )
    await asyncio.sleep(0.01)
    go.set()
    kept, lost = await waiting
    assert isinstance(kept, Scored)
    assert isinstance(lost, InferenceFailed)
    await asyncio.gather(*busy)


async def test_an_empty_slot_cannot_be_rehearsed(device: Device) -> None:
    with pytest.raises(RuntimeError, match="slot 5 is empty"):
        await device.runner.rehearse([row()], 5)


async def test_lanes_work_at_the_same_time(device: Device) -> None:
    await device.runner.load(1, PROMPT)
    both = threading.Barrier(2)
    device.backbone.meet = lambda: both.wait(20)
    await asyncio.gather(*(device.batcher.submit([row()], 1) for _ in range(2)))


async def test_dropping_a_slot_twice_is_fine(device: Device) -> None:
    await device.runner.load(1, PROMPT)
    for _ in range(2):
        device.runner.drop(1)
        await device.runner.load(2, PROMPT)  # a lane has been up since
    with pytest.raises(RuntimeError, match="slot 1 is empty"):
        await device.runner.rehearse([row()], 1)


async def test_an_idle_device_frees_what_was_dropped(device: Device, eventually: Eventually) -> None:
    for slot in (1, 2, 3):
        await device.runner.load(slot, PROMPT)
    device.runner.drop(1)
    device.runner.drop(3)
    await eventually(lambda: list(device.runner._prompts) == [2])
