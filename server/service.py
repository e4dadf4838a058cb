"""The life of the server behind its apps: start, drain, stop.

Owns: the order in which parts come up and go down, seeding, and what a person sees of it. Must not know:
sockets, signals, HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from prompt_store import (
    PromptStore,
    PromptStoreError,
    StoreUnavailable,
    Target,
    UnknownTask,
    decode_prompt,
    version_of,
)
from server.boundary import Boundary
from server.catalogue import CURRENT, Catalogue
from server.errors import ServerError
from server.guard import Guard
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.prompt_cache import PromptCache
from server.prompt_decoder import Checked, PromptDecoder
from server.prompt_loader import PromptLoader
from server.prompt_sync import PromptSync
from server.prompt_tiers import PromptTiers
from server.runner import Runner
from server.snapshot import Snapshot
from server.warming import Warming

if TYPE_CHECKING:
    from backbone import Backbone

_SEEDER: Final = "seed"
_PAUSE_SECONDS: Final = 1.0  # after a store that answered with something else than prompts


class BackboneUnusable(Exception):
    """The backbone that the settings name cannot be loaded; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that have a life."""

    load_backbone: Callable[[], Backbone]
    seed_dir: Path | None
    store: PromptStore
    catalogue: Catalogue
    snapshot: Snapshot | None
    tiers: PromptTiers[Checked]
    runner: Runner
    decoder: PromptDecoder
    loader: PromptLoader
    cache: PromptCache
    sync: PromptSync
    guard: Guard
    warming: Warming
    metrics: Metrics
    version: str
    lifecycle: Lifecycle
    boundaries: tuple[Boundary, ...]
    log: Any = field(default_factory=lambda: structlog.get_logger("promptmux"))
    _background: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Load the model, take in the store, warm up; then ready. Raises what keeps it from starting."""
        began = time.perf_counter()
        self.log.info("loading_backbone")
        try:
            backbone = await self.runner.start(self.load_backbone)
        except Exception as error:
            if getattr(error, "code", None) is None:  # the backbone's own errors are written for people
                self.log.exception("backbone_failed")
            raise BackboneUnusable(str(error)) from error
        self.log.info(
            "backbone_loaded",
            backbone=backbone.name,
            fingerprint=backbone.fingerprint,
            device=str(backbone.device),
            dtype=backbone.dtype_name,
            kernels=backbone.kernels,
            lanes=backbone.lanes,
            seconds=round(time.perf_counter() - began, 2),
        )
        self._show(backbone)
        self.decoder.serve_with(backbone)
        await self.tiers.open()
        taken_in = await self._take_in_store(backbone.fingerprint)
        work = {
            "guard": self.guard.work,
            "warming": self.warming.run,
            "sync": self.sync.follow if taken_in else self._catch_up,
            "mending": self.sync.mend,
        }
        if self.snapshot is not None:
            work["snapshot"] = self.snapshot.follow
        self.sync.serve()
        for name, part in work.items():
            task = asyncio.create_task(part(), name=name)
            task.add_done_callback(self._ended)
            self._background.append(task)
        problems = sum(len(task.problems) for task in self.catalogue)
        self.log.info("store_read", tasks=len(self.catalogue), problems=problems)
        gc.collect()
        gc.freeze()  # what is there now stays: later collections need not look at the whole model again
        self.lifecycle.phase = "ready"

    async def leave(self, delay: float, hurry: asyncio.Event) -> None:
        """Say that this server will stop, and go on as before for `delay` seconds, or until `hurry` is set."""
        if self.lifecycle.phase != "ready" or not delay:
            return
        self.lifecycle.phase = "leaving"
        self.log.info("leaving", seconds=delay)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await hurry.wait()

    async def drain(self, patience: float, hurry: asyncio.Event) -> bool:
        """Take no more work, finish what was accepted; False when time ran out or `hurry` was set before."""
        self.lifecycle.phase = "draining"
        deadline = time.monotonic() + patience
        while any(boundary.in_flight for boundary in self.boundaries):
            if hurry.is_set() or time.monotonic() >= deadline:
                unanswered = sum(boundary.in_flight for boundary in self.boundaries)
                self.log.warning("drain_cut_short", unanswered=unanswered)
                for boundary in self.boundaries:
                    boundary.abort()
                return False
            await asyncio.sleep(0.02)
        return True

    async def stop(self) -> None:
        """Let go of everything."""
        while self._background:
            # More than once: up to Python 3.11 a cancel is lost when it meets `wait_for` at the wrong moment.
            for task in self._background:
                task.cancel()
            await asyncio.wait(self._background, timeout=0.2)
            self._background[:] = [task for task in self._background if not task.done()]
        await self.guard.aclose()
        await self.sync.aclose()
        await self.cache.aclose()
        await self.tiers.aclose()
        if self.snapshot is not None:
            await self.snapshot.aclose()
        if not await self.runner.stop(patience=5.0):
            self.log.warning("lanes_still_busy")
        await self.store.aclose()

    def _show(self, backbone: Backbone) -> None:
        """Let the metrics say what serves here, and what the device holds whenever they are read."""
        metrics = self.metrics
        metrics.build_info.labels(
            self.version,
            backbone.name,
            backbone.fingerprint[:12],
            str(backbone.device),
            backbone.dtype_name,
        ).set(1)
        if str(backbone.device).startswith("cuda"):
            from backbone.device_memory import device_memory  # imports torch: by now it is there

            def read(kind: str) -> float:
                try:
                    return device_memory(backbone.device)[kind]
                except RuntimeError:  # CUDA's: a GPU that has failed does not take all other metrics along
                    return math.nan

            for kind in device_memory(backbone.device):
                metrics.watch(metrics.device_memory.labels(kind), functools.partial(read, kind))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part that works in the background has ended: what it died of must not go unheard."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.metrics.background_failures.labels(task.get_name()).inc()
        self.log.error("background_part_died", part=task.get_name(), exc_info=error)

    async def _take_in_store(self, fingerprint: str) -> bool:
        """Take in the store; False where it is away and the snapshot has to do for now.

        Without a snapshot again and again: the server stays unready, and alive.
        """
        saved = await self.snapshot.load(fingerprint) if self.snapshot is not None else None
        if saved is not None:
            self.sync.recall(saved)
        if self.snapshot is not None:
            self.snapshot.attend()
        while True:
            try:
                await self._list_store()
                return True
            except StoreUnavailable as error:
                self.log.warning("store_unavailable", detail=str(error), retry_seconds=error.retry_after)
                if saved is not None and saved.tasks:
                    age = round(saved.age, 1)
                    self.log.warning("serving_snapshot", tasks=len(saved.tasks), age_seconds=age)
                    return False
                await asyncio.sleep(error.retry_after)

    async def _catch_up(self) -> None:
        """The store was away at the start: try until it is back, then follow it."""
        while True:
            try:
                await self._list_store()
            except StoreUnavailable as error:
                await asyncio.sleep(error.retry_after)
            except Exception:
                self.log.exception("store_not_read")  # a server that serves must go on
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                self.log.info("store_back", tasks=len(self.catalogue))
                return await self.sync.follow()

    async def _list_store(self) -> None:
        if self.seed_dir is not None:
            await self._seed(self.seed_dir)
        # Loads prompts and runs their golden examples, which warms up the model.
        await self.sync.start()

    async def _seed(self, folder: Path) -> None:
        """Publish the folder's prompts, each as `current` of its task, if the store never had that task."""
        for path in await asyncio.to_thread(lambda: sorted(folder.glob("*.safetensors"))):
            try:
                data = await asyncio.to_thread(path.read_bytes)
                task_id = (await asyncio.to_thread(decode_prompt, data)).manifest.task_id
                # One from the snapshot is the operator's by now, also where the store lost it.
                if self.catalogue.get(task_id) is not None or not await self._untouched(task_id):
                    continue
                await self.loader.try_out(data, task_id)
                version = version_of(data)
                await self.store.publish(data, expect_version=version, actor=_SEEDER)
                await self.store.set_alias(
                    task_id, CURRENT, [Target(version)], expected_revision=0, actor=_SEEDER
                )
            except StoreUnavailable:
                raise
            except (PromptStoreError, ServerError, OSError) as error:
                # A demo task that does not fit this backbone must not keep the server from starting.
                detail = "unreadable" if isinstance(error, OSError) else str(error)
                self.log.warning("seed_skipped", file=path.name, detail=detail)
            else:
                self.log.info("seeded", task=task_id, version=version)

    async def _untouched(self, task_id: str) -> bool:
        """Whether nobody ever did anything with the task; a deleted one was touched and stays deleted."""
        try:
            events = await self.store.history(task_id)
        except UnknownTask:
            return True
        # Only a seeding that was cut short: the version is there, `current` is not.
        return all((event.actor, event.action) == (_SEEDER, "publish") for event in events)
