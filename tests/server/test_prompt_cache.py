import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from prompt_store import IncompatiblePrompt, StoreUnavailable
from server import prompt_cache
from server.metrics import Metrics
from server.prompt_cache import SLOT_OVERHEAD, Loaded, PromptCache
from tests.server.conftest import Eventually


class Device:
    """Loads when told to. Every version is 10 bytes."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.held: dict[int, str] = {}
        self.go = asyncio.Event()
        self.go.set()
        self.fails: set[str] = set()
        self.away = False

    async def load(self, task_id: str, version: str, slot: int, *, rehearse: bool) -> Loaded:
        self.loads.append(version)
        await self.go.wait()
        if self.away:
            raise StoreUnavailable("away")
        if version in self.fails:
            raise IncompatiblePrompt("other shapes")
        self.held[slot] = version
        members = (None,) * 3 if version == "three" else ()
        manifest: Any = SimpleNamespace(labels=("a", "b"), members=members)
        encoder: Any = SimpleNamespace(virtual_tokens=0, takes_pair=False)
        return Loaded(manifest, encoder, 10, 15 if members else 5)

    def drop(self, slot: int) -> None:
        del self.held[slot]


@pytest.fixture
async def device() -> Device:
    return Device()


@pytest.fixture
async def cache(device: Device, metrics: Metrics) -> PromptCache:
    return PromptCache(device.load, device.drop, capacity_bytes=3 * (10 + SLOT_OVERHEAD), metrics=metrics)


async def use(cache: PromptCache, version: str) -> None:
    cache.unpin(await cache.pin("task", version))


async def test_one_load_for_many_waiters(cache: PromptCache, device: Device) -> None:
    device.go.clear()
    waiters = [asyncio.create_task(cache.pin("task", "v1")) for _ in range(20)]
    await asyncio.sleep(0)
    device.go.set()
    slots = await asyncio.gather(*waiters)
    assert device.loads == ["v1"]
    assert len(set(slots)) == 1
    assert slots[0].pins == 20


async def test_the_least_recently_used_goes_first(
    cache: PromptCache, device: Device, eventually: Eventually
) -> None:
    for version in ("v1", "v2", "v3"):
        await use(cache, version)
    await use(cache, "v1")
    await use(cache, "v4")
    assert "v2" not in cache
    assert all(version in cache for version in ("v1", "v3", "v4"))
    await eventually(lambda: sorted(device.held.values()) == ["v1", "v3", "v4"])


async def test_what_is_only_made_ready_drives_out_nothing_that_is_in_use(
    cache: PromptCache, device: Device
) -> None:
    await use(cache, "v1")
    await use(cache, "v2")
    for number in range(10):
        async with cache.pinned("task", f"ready{number}", rehearse=True) as slot:
            assert slot.version in cache
    assert [version for version in cache._slots if version.startswith("v")] == ["v1", "v2"]
    await use(cache, "ready9")  # asked for: from now on like the others
    await use(cache, "v3")
    assert "ready9" in cache
    assert "v1" not in cache


async def test_a_pinned_slot_is_never_evicted(
    cache: PromptCache, device: Device, eventually: Eventually
) -> None:
    pinned = await cache.pin("task", "v1")
    for number in range(2, 12):
        await use(cache, f"v{number}")
    assert "v1" in cache
    assert device.held[pinned.index] == "v1"
    others = [await cache.pin("task", f"w{number}") for number in range(5)]  # past the capacity, all in use
    assert all(slot.version in cache for slot in others)
    for slot in [pinned, *others]:
        cache.unpin(slot)
    await eventually(lambda: len(device.held) == 3)


async def test_a_slot_number_is_never_used_again(cache: PromptCache, device: Device) -> None:
    seen = set()
    for number in range(10):
        slot = await cache.pin("task", f"v{number}")
        assert slot.index not in seen
        seen.add(slot.index)
        cache.unpin(slot)


async def test_a_waiter_that_leaves_takes_nothing_from_the_others(cache: PromptCache, device: Device) -> None:
    device.go.clear()
    leaves, stays = (asyncio.create_task(cache.pin("task", "v1")) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.sleep(0)
    device.go.set()
    assert (await stays).pins == 1
    assert device.loads == ["v1"]


async def test_a_load_that_fails_fails_for_all_and_is_not_repeated_at_once(
    cache: PromptCache, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.fails.add("v1")
    results = await asyncio.gather(*(cache.pin("task", "v1") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, IncompatiblePrompt) for result in results)
    with pytest.raises(IncompatiblePrompt):
        await cache.pin("task", "v1")
    assert device.loads == ["v1"]
    device.fails.clear()
    cache.forget_failure("v1")
    await use(cache, "v1")
    assert device.loads == ["v1", "v1"]


async def test_a_store_that_is_away_is_no_failure_of_the_version(cache: PromptCache, device: Device) -> None:
    device.away = True
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await cache.pin("task", "v1")
    device.away = False
    await use(cache, "v1")
    assert device.loads == ["v1"] * 3


async def test_a_failure_is_forgotten_after_a_while(
    cache: PromptCache, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_cache, "_RETRY_FAILED_AFTER", 0.0)
    device.fails.add("v1")
    with pytest.raises(IncompatiblePrompt):
        await cache.pin("task", "v1")
    device.fails.clear()
    await use(cache, "v1")


async def test_what_waits_is_not_evicted_before_it_is_pinned(device: Device, metrics: Metrics) -> None:
    cache = PromptCache(device.load, device.drop, capacity_bytes=0, metrics=metrics)
    device.go.clear()
    waiters = [asyncio.create_task(cache.pin("task", f"v{number % 4}")) for number in range(12)]
    await asyncio.sleep(0)
    device.go.set()
    slots = await asyncio.gather(*waiters)
    assert sorted(device.loads) == ["v0", "v1", "v2", "v3"]
    assert all(slot.version in cache for slot in slots)


async def test_the_prefix_is_what_a_row_costs_beyond_its_places(cache: PromptCache) -> None:
    slot = await cache.pin("task", "v1")
    assert (slot.num_virtual_tokens, slot.extra_tokens, slot.members) == (5, 5, 1)
    ensemble = await cache.pin("task", "three")
    assert (ensemble.num_virtual_tokens, ensemble.extra_tokens, ensemble.members) == (15, 5, 3)
    assert ensemble.nbytes == 10 + 3 * SLOT_OVERHEAD


async def test_what_a_slot_takes_beside_its_values_counts_too(cache: PromptCache, metrics: Metrics) -> None:
    for version in ("v1", "v2", "v3"):
        await use(cache, version)
    assert cache.nbytes == 3 * (10 + SLOT_OVERHEAD)
    assert metrics.registry.get_sample_value("promptmux_tier_bytes", {"tier": "device"}) == cache.nbytes
    assert cache.versions() == ["v1", "v2", "v3"]
    await use(cache, "v1")
    assert cache.versions() == ["v2", "v3", "v1"]
    await use(cache, "v4")
    assert (cache.versions(), cache.nbytes) == (["v3", "v1", "v4"], 3 * (10 + SLOT_OVERHEAD))
