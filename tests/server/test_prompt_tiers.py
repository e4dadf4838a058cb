import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from prompt_store import CorruptVersion, StoreUnavailable, UnknownVersion, version_of
from server import prompt_tiers
from server.disk_tier import DiskTier
from server.host_tier import Held, HostTier
from server.metrics import Metrics
from server.prompt_tiers import PromptTiers

DATA = bytes(range(256)) * 4
VERSION = version_of(DATA)
LARGE = bytes(300_000)


class Store:
    """The one call of a store that the tiers make."""

    def __init__(self) -> None:
        self.has = {version_of(data): data for data in (DATA, LARGE)}
        self.gets = 0
        self.fails: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def get(self, task_id: str, version: str) -> bytes:
        self.gets += 1
        await self.go.wait()
        if self.fails is not None:
            raise self.fails
        if version not in self.has:
            raise UnknownVersion("no such version")
        return self.has[version]


def decode(data: bytes) -> tuple[str, int]:
    return f"decoded {version_of(data)}", 10


def decoded(version: str) -> str:
    return f"decoded {version}"


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


def bytes_in(host: HostTier[str], version: str) -> bytes | None:
    held = host.get(version)
    return None if held is None else held.data


async def written(tiers: PromptTiers[str]) -> None:
    await asyncio.gather(*tiers._writes)


def counted(metrics: Metrics, what: str, tier: str) -> float:
    return metrics.registry.get_sample_value(f"promptmux_tier_{what}_total", {"tier": tier}) or 0.0


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


class HangingDisk(DiskTier):
    """Reads and writes hang until `go`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 10**6, max_file_bytes=10**6)
        self.go = threading.Event()
        self.reads = self.writes = 0

    def read(self, version: str) -> bytes | None:
        self.reads += 1
        self.go.wait(90)
        return super().read(version)

    def write(self, version: str, data: bytes) -> int:
        self.writes += 1
        self.go.wait(90)
        return super().write(version, data)


@pytest.fixture
async def hanging(tmp_path: Path) -> AsyncIterator[HangingDisk]:
    disk = HangingDisk(tmp_path / "prompts")
    yield disk
    disk.go.set()


async def test_past_a_disk_that_hangs_the_store_is_asked(
    store: Store,
    host: HostTier[str],
    hanging: HangingDisk,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prompt_tiers, "_DISK_PATIENCE", 0.1)
    tiers = PromptTiers[str](store, host, hanging, decode, metrics)  # type: ignore[arg-type]
    await tiers.open()
    many = [bytes([number]) * 100 for number in range(20)]
    store.has |= {version_of(data): data for data in many}
    async with asyncio.timeout(30):
        found = await asyncio.gather(*(tiers.get("task", version_of(data)) for data in many))
    assert found == [decoded(version_of(data)) for data in many]
    reads = hanging.reads
    assert 0 < reads <= 4
    monkeypatch.setattr(prompt_tiers, "_DISK_PATIENCE", 60.0)
    async with asyncio.timeout(30):
        assert await tiers.get("task", VERSION) == decoded(VERSION)
    assert hanging.reads == reads  # nobody waits for it again while it hangs
    assert not await tiers.prefetch("task", VERSION)
    assert capsys.readouterr().out.count("disk_tier_fails") == 1

    hanging.go.set()
    await written(tiers)
    async with asyncio.timeout(30):
        while hanging.reads == reads:
            host.drop(VERSION)
            assert await tiers.get("task", VERSION) == decoded(VERSION)
            await asyncio.sleep(0.01)
    assert counted(metrics, "hits", "disk") == 1
    assert await tiers.prefetch("task", VERSION)
    await tiers.aclose()


async def test_what_waits_for_a_slow_disk_is_bounded(
    store: Any,
    host: HostTier[str],
    hanging: HangingDisk,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prompt_tiers, "_WAITING_BYTES", 3000)
    tiers = PromptTiers[str](store, host, hanging, decode, metrics)
    await tiers.open()
    many = [bytes([number]) * 1000 for number in range(20)]
    for data in many:
        tiers.put(version_of(data), data)
    assert (len(tiers._writes), tiers._waiting) == (3, 3000)
    assert capsys.readouterr().out.count("disk_tier_fails") == 1
    monkeypatch.setattr(hanging, "read", lambda version: DATA)  # reads do not wait behind writes
    async with asyncio.timeout(30):
        assert await tiers.get("task", VERSION) == decoded(VERSION)
    assert counted(metrics, "hits", "disk") == 1
    hanging.go.set()
    await written(tiers)
    await asyncio.sleep(0)
    assert [hanging.has(version_of(data)) for data in many] == [True] * 3 + [False] * 17
    tiers.put(version_of(many[-1]), many[-1])  # there is room again
    large = bytes(5000)
    await written(tiers)
    tiers.put(version_of(large), large)  # more than the bound, but alone
    await written(tiers)
    assert hanging.has(version_of(many[-1]))
    assert hanging.has(version_of(large))
    await tiers.aclose()


async def test_what_is_in_memory_or_on_the_device_stays_on_the_disk(
    store: Any,
    host: HostTier[str],
    metrics: Metrics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Any,
) -> None:
    monkeypatch.setattr(prompt_tiers, "_TOUCH_EVERY", 0.02)
    disk = DiskTier(tmp_path / "prompts", 5000, max_file_bytes=5000)
    tiers = PromptTiers[str](store, host, disk, decode, metrics)
    many = [bytes([number]) * 1000 for number in range(5)]
    versions = [version_of(data) for data in many]
    for age, data in zip((9, 8, 7, 6, 5), many, strict=True):
        disk.write(version_of(data), data)
        os.utime(disk._path(version_of(data)), (time.time() - 1000 * age,) * 2)
    host.put(versions[0], Held(many[0]))
    tiers.keep_on_disk(lambda: [versions[1]])
    await tiers.open()
    await eventually(lambda: all(disk._path(one).stat().st_mtime > time.time() - 100 for one in versions[:2]))
    tiers.put(version_of(b"new" * 400), b"new" * 400)
    await written(tiers)
    assert [disk.has(version) for version in versions] == [True, True, False, False, True]
    await tiers.aclose()


async def test_a_folder_that_others_may_write_to_is_done_without(
    store: Store,
    host: HostTier[str],
    metrics: Metrics,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = DiskTier(tmp_path / "prompts", 10**6, max_file_bytes=10**6)
    disk.write(VERSION, DATA)
    (tmp_path / "prompts").chmod(0o777)
    tiers = PromptTiers[str](store, host, disk, decode, metrics)  # type: ignore[arg-type]
    await tiers.open()
    assert tiers.disk is None
    for version in store.has:
        assert await tiers.get("task", version) == decoded(version)
    assert store.gets == 2
    said = capsys.readouterr().out
    assert (said.count("disk_tier_refused"), said.count("disk_tier_fails")) == (1, 0)
    await tiers.aclose()
