import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from prompt_store import Golden, version_of
from server.errors import GoldenMismatch, PromptRefused
from server.prompt_loader import _TRIALS_AT_ONCE, slices
from tests.server.conftest import Start
from tests.server.fakes import prompt_bytes


async def test_a_version_is_rehearsed_before_an_alias_leads_to_it_and_not_again(start: Start) -> None:
    """An evicted prompt that comes back costs no second rehearsal."""
    async with start(task=False, prompt_cache_bytes=0) as server:
        for name in ("a", "b"):
            await server.publish(prompt_bytes(name, golden=[Golden(text="x", label="negative")] * 3), name)
            await server.apps.service.sync.refresh(name)
        assert server.backbone.batches == [3, 3]
        for _ in range(3):
            for name in ("a", "b"):
                assert (await server.classify("x", name)).status_code == 200
        assert server.backbone.batches[2:] == [1] * 6
        assert server.counted("tier_evictions_total", tier="device") >= 4


async def test_one_that_a_request_loaded_is_rehearsed_before_an_alias_leads_to_it(start: Start) -> None:
    async with start() as server:
        service = server.apps.service
        bad = prompt_bytes(favours=1, golden=[Golden(text="x", label="negative")])
        await service.store.publish(bad)
        await service.sync.refresh("sentiment")
        assert (await server.classify(version=version_of(bad))).status_code == 200  # by its name, on purpose
        await server.publish(bad)
        await service.sync.refresh("sentiment")
        assert (await server.classify()).json()["version"] != version_of(bad)
        assert service.catalogue.get("sentiment").problems["current"].code == "golden_mismatch"


async def test_golden_examples_run_in_batches_and_all_are_judged(start: Start) -> None:
    """Each time: in a trial, in a load, and where a request has loaded the version before."""
    long = "x " * 20
    golden = [Golden(text=long, label="negative")] * 7
    async with start(max_batch_tokens=50) as server:
        service = server.apps.service
        server.backbone.batches.clear()
        await service.loader.try_out(prompt_bytes(golden=golden), "sentiment")
        assert server.backbone.batches == [2, 2, 2, 1]
        bad = prompt_bytes(golden=[*golden, Golden(text="y", label="positive")])
        with pytest.raises(GoldenMismatch, match="example 8"):
            await service.loader.try_out(bad, "sentiment")
        own = prompt_bytes(golden=golden, bias=3.0)
        await service.store.publish(own)
        await service.sync.refresh("sentiment")
        assert (await server.classify(version=version_of(own))).status_code == 200
        server.backbone.batches.clear()
        await server.publish(own)
        await service.sync.refresh("sentiment")
        assert server.backbone.batches == [2, 2, 2, 1]


def test_each_member_of_an_ensemble_counts() -> None:
    rows: Any = ["x" * 10] * 5
    assert list(map(len, slices(rows, 1, 0, 50))) == [5]
    assert list(map(len, slices(rows, 2, 0, 50))) == [2, 2, 1]
    assert list(map(len, slices(rows, 2, 3, 50))) == [1] * 5
    assert list(map(len, slices(rows, 16, 0, 50))) == [1] * 5


async def test_golden_examples_that_would_take_too_long_are_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they reach the device."""
    monkeypatch.setattr("server.prompt_loader._MOST_TRIED", 100)
    async with start() as server:
        loader, batches = server.apps.service.loader, server.backbone.batches
        batches.clear()
        five = [Golden(text="x " * 20, label="negative")] * 5
        await loader.try_out(prompt_bytes(golden=five), "sentiment")
        assert batches == [5]
        with pytest.raises(
            PromptRefused, match=r"the 6 golden examples are 120 tokens, .* at most 100: keep"
        ):
            await loader.try_out(prompt_bytes(golden=[*five, five[0]]), "sentiment")
        assert batches == [5]


async def test_a_trial_leaves_nothing_on_the_device(
    start: Start, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    async with start() as server:
        service = server.apps.service
        held = set(service.runner._prompts)
        await service.loader.try_out(prompt_bytes(), "sentiment")
        await eventually(lambda: set(service.runner._prompts) == held)


async def test_a_trial_whose_caller_goes_leaves_nothing_on_the_device(
    start: Start, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    async with start() as server:
        service = server.apps.service
        held = set(service.runner._prompts)
        begun, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            go_on.wait(20)

        server.backbone.meet = wait
        trial = asyncio.create_task(service.loader.try_out(prompt_bytes(), "sentiment"))
        await asyncio.to_thread(begun.wait, 20)
        trial.cancel()
        await asyncio.wait([trial])
        go_on.set()
        await service.loader.try_out(prompt_bytes(), "sentiment")
        await eventually(lambda: set(service.runner._prompts) == held)


async def test_trials_at_once_are_bounded(
    start: Start,
    eventually: Callable[[Callable[[], bool]], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with start() as server:
        service = server.apps.service
        real, go_on = service.runner.load, asyncio.Event()
        now = most = 0

        async def load(*arguments: Any) -> Any:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                await go_on.wait()
                return await real(*arguments)
            finally:
                now -= 1

        monkeypatch.setattr(service.runner, "load", load)
        trials = [asyncio.create_task(service.loader.try_out(prompt_bytes(), "sentiment")) for _ in range(12)]
        await eventually(lambda: now == _TRIALS_AT_ONCE)
        trials[0].cancel()  # its place is free for another one
        await asyncio.wait(trials[:1])
        await eventually(lambda: now == _TRIALS_AT_ONCE)
        go_on.set()
        await asyncio.gather(*trials[1:])
        assert most == _TRIALS_AT_ONCE


async def test_all_currents_are_warmed_in_the_background_while_there_is_room(
    start: Start, eventually: Callable[[Callable[[], bool]], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prompt_sync._WARM_TASKS", 1)
    async with start(task=False) as server:
        store = server.apps.service.store
        for number in range(6):
            await server.publish(prompt_bytes(f"t{number}"), f"t{number}")
        await store.publish(prompt_bytes("unused"))
    async with start(task=False) as server:
        cache = server.apps.service.cache
        await eventually(lambda: len(cache._slots) == 6)


async def test_what_has_no_room_on_the_device_is_fetched_to_the_disk_ahead(
    start: Start, eventually: Callable[[Callable[[], bool]], Awaitable[None]], tmp_path: Path
) -> None:
    async with start(task=False) as server:
        for number in range(6):
            await server.publish(prompt_bytes(f"t{number}"), f"t{number}")
    cache = tmp_path / "cache"
    async with start(task=False, cache_dir=cache, prompt_cache_bytes=0, host_cache_bytes=0) as server:
        tiers = server.apps.service.tiers
        await eventually(lambda: tiers.disk is not None and len(tiers.disk) == 6)
        server.apps.service.store.get = None  # type: ignore[assignment]  # nobody may ask it any more
        for number in range(6):
            assert (await server.classify(task_id=f"t{number}")).status_code == 200
