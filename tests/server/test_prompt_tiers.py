"""A prompt comes from memory, disk or store, and fills the tiers before."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from prompt_store import CorruptVersion, StoreUnavailable, UnknownVersion, version_of
from server.disk_tier import DiskTier
from server.host_tier import Held, HostTier
from server.metrics import Metrics
from server.prompt_tiers import PromptTiers
from tests.server.tier_parts import DATA, LARGE, VERSION, Store, bytes_in, counted, decode, decoded, written


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
def host() -> HostTier[str]:
    return HostTier(10**6)


@pytest.fixture
def disk(tmp_path: Path) -> DiskTier:
    return DiskTier(tmp_path / "prompts", 10**6, max_file_bytes=10**6)


@pytest.fixture
async def tiers(
    store: Any, host: HostTier[str], disk: DiskTier, metrics: Metrics
) -> AsyncIterator[PromptTiers[str]]:
    tiers = PromptTiers(store, host, disk, decode, metrics)
    await tiers.open()
    yield tiers
    await tiers.aclose()


@pytest.mark.parametrize("data", [DATA, LARGE])
async def test_each_tier_fills_those_before_it(
    tiers: PromptTiers[str], store: Store, host: HostTier[str], disk: DiskTier, metrics: Metrics, data: bytes
) -> None:
    version = version_of(data)
    assert await tiers.get("task", version) == decoded(version)
    await written(tiers)
    assert disk.read(version) == data
    assert await tiers.get("task", version) == decoded(version)
    host.drop(version)
    assert await tiers.get("task", version) == decoded(version)
    assert bytes_in(host, version) == data
    assert store.gets == 1
    assert [counted(metrics, "hits", tier) for tier in ("host", "disk", "store")] == [1, 1, 1]
    assert [counted(metrics, "misses", tier) for tier in ("host", "disk", "store")] == [2, 1, 0]


async def test_altered_bytes_are_dropped_and_the_next_tier_answers(
    tiers: PromptTiers[str], store: Store, host: HostTier[str], disk: DiskTier, metrics: Metrics
) -> None:
    await tiers.get("task", VERSION)
    await written(tiers)
    host.put(VERSION, Held(DATA[:-1] + b"x", "decoded from other bytes"))
    disk._path(VERSION).write_bytes(DATA[:-1])
    assert await tiers.get("task", VERSION) == decoded(VERSION)
    await written(tiers)
    assert [counted(metrics, "corrupt", tier) for tier in ("host", "disk")] == [1, 1]
    assert (bytes_in(host, VERSION), disk.read(VERSION), store.gets) == (DATA, DATA, 2)
    store.fails = CorruptVersion("altered there, too")
    host.drop(VERSION)
    disk.drop(VERSION)
    with pytest.raises(CorruptVersion):
        await tiers.get("task", VERSION)
    assert [counted(metrics, "corrupt", tier) for tier in ("host", "disk", "store")] == [1, 1, 1]


async def test_one_fetch_for_many_waiters(tiers: PromptTiers[str], store: Store) -> None:
    store.go.clear()
    waiters = [asyncio.create_task(tiers.get("task", VERSION)) for _ in range(20)]
    await asyncio.sleep(0.05)
    waiters[0].cancel()
    store.go.set()
    assert await asyncio.gather(*waiters[1:]) == [decoded(VERSION)] * 19
    assert store.gets == 1


async def test_a_file_is_decoded_once_while_it_is_in_memory(
    store: Any, host: HostTier[str], metrics: Metrics
) -> None:
    times = []

    def counting(data: bytes) -> tuple[str, int]:
        times.append(len(data))
        return decode(data)

    tiers = PromptTiers(store, host, None, counting, metrics)
    for data in (DATA, LARGE):
        tiers.put(version_of(data), data)  # as an upload does: not decoded yet
        for _ in range(3):
            assert await tiers.get("task", version_of(data)) == decoded(version_of(data))
    assert (times, store.gets) == ([len(DATA), len(LARGE)], 0)
    await tiers.aclose()


async def test_with_the_store_away_what_is_here_is_served_and_the_rest_refused_at_once(
    tiers: PromptTiers[str], store: Store, host: HostTier[str]
) -> None:
    await tiers.get("task", VERSION)
    await written(tiers)
    host.drop(VERSION)
    store.fails = StoreUnavailable("away", retry_after=5.0)
    assert await tiers.get("task", VERSION) == decoded(VERSION)
    for number in range(5):
        with pytest.raises(StoreUnavailable, match="away"):
            await tiers.get("task", f"{number:064}")
    assert store.gets == 3  # two misses found out, for those after them too
    assert await tiers.get("task", VERSION) == decoded(VERSION)


async def test_one_version_that_cannot_be_had_keeps_no_other_from_the_store(
    tiers: PromptTiers[str], store: Store
) -> None:
    """Too large for the store's timeout, say: the store itself is there."""
    store.fails = StoreUnavailable("too slow", retry_after=5.0)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await tiers.get("task", "0" * 64)
    store.fails = None
    assert await tiers.get("task", VERSION) == decoded(VERSION)


async def test_a_store_that_hangs_keeps_nobody_from_what_is_here(
    tiers: PromptTiers[str], store: Store, host: HostTier[str], metrics: Metrics
) -> None:
    await tiers.get("task", VERSION)
    await written(tiers)
    store.go.clear()
    hanging = [asyncio.create_task(tiers.get("task", f"{number:064}")) for number in range(40)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(30):
        assert await tiers.get("task", VERSION) == decoded(VERSION)
        host.drop(VERSION)
        assert await tiers.get("task", VERSION) == decoded(VERSION)
    assert [counted(metrics, "hits", tier) for tier in ("host", "disk")] == [1, 1]
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    store.go.set()


async def test_what_the_store_refuses_is_not_a_pause(tiers: PromptTiers[str], store: Store) -> None:
    with pytest.raises(UnknownVersion):
        await tiers.get("task", "0" * 64)
    assert await tiers.get("task", VERSION) == decoded(VERSION)


async def test_a_disk_that_fails_stops_nothing_and_is_said_once(
    store: Any, host: HostTier[str], metrics: Metrics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts").write_text("no folder")
    tiers = PromptTiers(
        store, host, DiskTier(tmp_path / "prompts", 10**6, max_file_bytes=10**6), decode, metrics
    )
    await tiers.open()
    for version in store.has:
        assert await tiers.get("task", version) == decoded(version)
        await written(tiers)
    assert counted(metrics, "errors", "disk") >= 4
    said = capsys.readouterr().out
    assert 1 <= said.count("disk_tier_fails") <= 3  # for counting, reading and writing
    assert not await tiers.prefetch("task", VERSION)
    (tmp_path / "prompts").unlink()  # mended: warming finds out by itself, though nothing is counted again
    assert tiers.wants_prefetch
    assert await tiers.prefetch("task", VERSION)
    assert tiers.disk is not None
    assert tiers.disk.read(VERSION) == DATA
    await tiers.aclose()


async def test_prefetching_puts_bytes_on_the_disk_once(
    tiers: PromptTiers[str], store: Store, disk: DiskTier
) -> None:
    assert tiers.wants_prefetch
    for _ in range(2):
        assert await tiers.prefetch("task", VERSION)
    assert disk.read(VERSION) == DATA
    assert store.gets == 1


async def test_a_disk_that_cannot_be_asked_has_nothing(
    tiers: PromptTiers[str], store: Store, disk: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: str) -> bool:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "has", fails)
        assert not await tiers.prefetch("task", VERSION)
    assert store.gets == 0  # no download that could not be kept
    assert await tiers.prefetch("task", VERSION)
    assert disk.read(VERSION) == DATA


@pytest.mark.parametrize("what", ["count", "drop", "write"])
async def test_a_failure_that_is_over_does_not_end_prefetching(
    store: Any,
    host: HostTier[str],
    disk: DiskTier,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    def fails(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    tiers = PromptTiers[str](store, host, disk, decode, metrics)
    with monkeypatch.context() as patch:
        patch.setattr(disk, what, fails)
        await tiers.open()
        tiers.put(VERSION, DATA)
        await written(tiers)
        if what == "drop":
            disk._path(VERSION).write_bytes(DATA[:-1])
            host.drop(VERSION)
            assert await tiers.get("task", VERSION) == decoded(VERSION)
            await written(tiers)
    assert counted(metrics, "errors", "disk") == 1
    assert tiers.wants_prefetch
    assert await tiers.prefetch("task", version_of(LARGE))
    assert disk.read(version_of(LARGE)) == LARGE
    await tiers.aclose()


async def test_without_a_disk(store: Any, host: HostTier[str], metrics: Metrics) -> None:
    tiers = PromptTiers(store, host, None, decode, metrics)
    await tiers.open()
    assert not tiers.wants_prefetch
    assert await tiers.get("task", VERSION) == decoded(VERSION)
    assert not await tiers.prefetch("task", VERSION)
    assert store.gets == 1
    await tiers.aclose()
