"""Wiring: every part of the server is made and joined here.

Owns: who is given what. The one module that knows all the others; it decides nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from starlette.types import ASGIApp

from prompt_store import open_store
from server.admin import admin_app
from server.auth import Keyring
from server.batcher import Batcher, Limits
from server.body import BodyLimits
from server.boundary import Boundary
from server.catalogue import Catalogue
from server.classify import ClassifyEndpoint, ClassifyLimits
from server.disk_tier import DiskTier
from server.engine import Engine
from server.guard import Guard
from server.host_tier import HostTier
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.operations import Operations
from server.prompt_cache import Loaded, PromptCache
from server.prompt_decoder import Checked, PromptDecoder
from server.prompt_loader import PromptLoader
from server.prompt_sync import PromptSync
from server.prompt_tiers import PromptTiers
from server.refusals import Refusals
from server.routes import public_app
from server.runner import Runner
from server.service import Service
from server.settings import Settings
from server.snapshot import Snapshot
from server.standing import Standing, describe
from server.traffic import Traffic
from server.view import View
from server.warming import Warming

if TYPE_CHECKING:
    from backbone import Backbone, Row

VERSION = "0.1.0"


@dataclass(frozen=True, slots=True)
class Apps:
    """The two ASGI apps, and the service behind them."""

    public: ASGIApp
    admin: ASGIApp
    service: Service


def create_apps(
    settings: Settings, keyring: Keyring, *, load_backbone: Callable[[], Backbone] | None = None
) -> Apps:
    """Both apps; await `service.start()` before use. Called on the event loop that serves them."""
    loop = asyncio.get_running_loop()
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    metrics = Metrics(registry, tasks=settings.metrics_tasks)
    lifecycle = Lifecycle(metrics)
    store = open_store(settings.store)
    catalogue = Catalogue()
    traffic = Traffic(settings.metrics_tasks)
    catalogue.listen(traffic.follow)
    metrics.export(traffic, catalogue)
    batcher: Batcher[Row] = Batcher(
        Limits(
            settings.max_batch_tokens,
            settings.max_batch_rows,
            settings.max_batch_seconds,
            settings.max_queue_rows,
            settings.max_queue_tokens,
        ),
        metrics,
        loop=loop,
    )
    runner = Runner(batcher, loop=loop)
    folder = settings.cache_folder()
    disk = None
    if folder is not None and settings.disk_cache_bytes:
        disk = DiskTier(
            folder / "prompts", settings.disk_cache_bytes, max_file_bytes=settings.max_prompt_bytes
        )
    decoder = PromptDecoder(settings.max_prompt_bytes)
    host: HostTier[Checked] = HostTier(settings.host_cache_bytes)
    tiers = PromptTiers(store, host, disk, decoder.decode, metrics)
    loader = PromptLoader(tiers, decoder, runner, batch_tokens=settings.max_batch_tokens)

    async def load(task_id: str, version: str, slot: int, *, rehearse: bool) -> Loaded:
        # What an alias leads to since before the start was never made ready here: its first load rehearses it.
        rehearse = rehearse or (catalogue.leads_to(task_id, version) and not loader.has_rehearsed(version))
        return await loader.load(task_id, version, slot, rehearse=rehearse)

    cache = PromptCache(load, runner.drop, capacity_bytes=settings.prompt_cache_bytes, metrics=metrics)
    tiers.keep_on_disk(cache.versions)

    async def prepare(task_id: str, version: str) -> None:
        async with cache.pinned(task_id, version, rehearse=True) as slot:
            await loader.confirm(slot)  # where a request had loaded it before

    view = View(metrics)
    snapshot = None if folder is None else Snapshot(folder, settings.store, catalogue, view, metrics)
    refusals = Refusals(catalogue, prepare, metrics)
    sync = PromptSync(store, catalogue, refusals, view, metrics)
    guard = Guard(store, catalogue, sync.refresh_after_write, metrics, max_errors=settings.canary_max_errors)
    engine = Engine(catalogue, view, cache, batcher, traffic, guard, metrics, refusals.found)

    def standing() -> Standing:
        return describe(view, catalogue, cache, settings.prompt_cache_bytes, tiers)

    classify = ClassifyEndpoint(
        engine,
        keyring,
        lifecycle,
        metrics,
        ClassifyLimits(
            BodyLimits(settings.max_body_bytes, settings.body_timeout),
            settings.max_inputs,
            settings.max_text_chars,
            settings.request_timeout,
        ),
    )
    operations = Operations(store, catalogue, cache, tiers, loader, sync, traffic, guard, prepare)
    # A whole prompt file may take as long as a megabyte a second takes.
    upload_limits = BodyLimits(
        settings.max_prompt_bytes, settings.body_timeout + settings.max_prompt_bytes / 2**20
    )
    public = Boundary(
        public_app(classify, catalogue, keyring, lifecycle, standing, VERSION),
        "public",
        metrics,
        access_log=settings.access_log,
        direct={("POST", "/classify"): classify},
    )
    admin = Boundary(
        admin_app(operations, keyring, lifecycle, standing, metrics, upload_limits, VERSION),
        "admin",
        metrics,
        access_log=settings.access_log,
    )
    capacities = {
        "device": settings.prompt_cache_bytes,
        "host": settings.host_cache_bytes,
        "disk": disk.capacity_bytes if disk is not None else 0,
    }
    for tier, capacity in capacities.items():
        metrics.tier_capacity.labels(tier).set(capacity)
    metrics.watch(metrics.http_in_flight, lambda: public.in_flight + admin.in_flight)
    metrics.watch(metrics.queue_rows, lambda: batcher.outstanding_rows)
    metrics.watch(metrics.queue_tokens, lambda: batcher.outstanding_tokens)
    warming = Warming(
        catalogue,
        cache,
        tiers,
        lambda: any(boundary.in_flight for boundary in (public, admin)),
        refusals.found,
    )
    service = Service(
        load_backbone=load_backbone or _backbone_of(settings),
        seed_dir=settings.seed_dir,
        store=store,
        catalogue=catalogue,
        snapshot=snapshot,
        tiers=tiers,
        runner=runner,
        decoder=decoder,
        loader=loader,
        cache=cache,
        sync=sync,
        guard=guard,
        warming=warming,
        metrics=metrics,
        version=VERSION,
        lifecycle=lifecycle,
        boundaries=(public, admin),
    )
    return Apps(public, admin, service)


def _backbone_of(settings: Settings) -> Callable[[], Backbone]:
    def load() -> Backbone:
        import torch

        from backbone import (
            load_backbone,  # torch and transformers take seconds to import: on a lane, not on the event loop
        )

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        return load_backbone(
            settings.backbone,
            device=settings.device,
            dtype=settings.dtype,
            revision=settings.backbone_revision,
            kernels=settings.kernels,
        )

    return load
