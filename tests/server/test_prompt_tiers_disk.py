"""Tiers above a disk that hangs, is slow, full or another's: prompts come all the same."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from prompt_store import version_of
from server import prompt_tiers
from server.disk_tier import DiskTier
from server.host_tier import Held, HostTier
from server.metrics import Metrics
from server.prompt_tiers import PromptTiers
from tests.server.tier_parts import DATA, VERSION, Store, counted, decode, decoded, written


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
def host() -> HostTier[str]:
    return HostTier(10**6)


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
