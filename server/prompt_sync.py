"""Follows the store: a version that an alias moves to is on the device before the catalogue says so.

Owns: when the catalogue changes. Must not know: HTTP, tensors, how prompts are checked. One task is refreshed
at a time, always from the store's present state, so that no late answer can move an alias back. What cannot
be served is counted and shown; the old version stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import structlog

from prompt_store import (
    AliasRecord,
    PromptStore,
    PromptStoreError,
    Revision,
    StoreUnavailable,
    Target,
    TaskRecord,
    UnknownTask,
)
from server.catalogue import CURRENT, Catalogue, Problem, ServedTask
from server.errors import ServerError
from server.metrics import Metrics

_WATCH_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_TASKS_AT_ONCE: Final = 8
_WARM_TASKS: Final = 64  # at start; the others are loaded by their first request


class PromptSync:
    """Keeps `catalogue` in step with `store`; `prepare(task_id, version)` loads a version or raises."""

    def __init__(
        self,
        store: PromptStore,
        catalogue: Catalogue,
        prepare: Callable[[str, str], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._store, self._catalogue, self._prepare, self._metrics = store, catalogue, prepare, metrics
        self._revision: Revision | None = None
        self._heard = time.monotonic()
        self._locks = [asyncio.Lock() for _ in range(64)]  # shared by tasks with equal hashes
        self._gate = asyncio.Semaphore(_TASKS_AT_ONCE)
        self._retry: set[str] = set()  # tasks whose refresh met a store that did not answer
        self._log = structlog.get_logger("promptmux.sync")
        metrics.watch(metrics.tasks, lambda: len(catalogue))
        metrics.watch(metrics.store_staleness, lambda: time.monotonic() - self._heard)

    async def start(self) -> None:
        """Take in every task of the store, the first with their prompts. Raises what the store raises."""
        revision = (
            await self._store.revision()
        )  # before the list: what changes meanwhile comes again by `watch`
        records = [record async for record in self._records()]
        await asyncio.gather(
            *(self._take_in(record, warm=at < _WARM_TASKS) for at, record in enumerate(records))
        )
        self._revision, self._heard = revision, time.monotonic()

    async def _take_in(self, record: TaskRecord, *, warm: bool) -> None:
        if warm:
            async with self._gate:
                await self._apply(record)
        else:
            aliases = {name: alias.targets for name, alias in record.aliases.items()}
            self._catalogue.put(_served(record, aliases, {}))

    async def follow(self) -> None:
        """Follow the store for as long as the task lives; a store that fails stops nothing."""
        failures = 0
        while True:
            try:
                await self._step()
                failures = 0
            except Exception as error:
                code = getattr(error, "code", "internal_error")
                self._metrics.sync_failures.labels(code).inc()
                self._log.warning(
                    "store_sync_failed", code=code, exc_info=not isinstance(error, PromptStoreError)
                )
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1

    async def refresh(self, task_id: str) -> None:
        """Bring one task up to date now."""
        async with self._locks[hash(task_id) % len(self._locks)], self._gate:
            try:
                record = await self._store.task(task_id)
            except UnknownTask:
                self._catalogue.drop(task_id)
            else:
                await self._apply(record)

    async def _step(self) -> None:
        assert self._revision is not None, "start comes first"
        changes = await self._store.watch(self._revision, timeout=0.5 if self._retry else _WATCH_SECONDS)
        self._heard = time.monotonic()
        due = set(changes.tasks) | self._retry
        if changes.reset:
            self._log.warning("store_history_lost", epoch=changes.revision.epoch)
            due |= {record.task_id async for record in self._records()}
        elif not due:
            # A quiet moment: what was broken may have been mended without a change in the catalogue.
            due = {task.task_id for task in self._catalogue if task.problems}
        results = await asyncio.gather(*map(self.refresh, due), return_exceptions=True)
        self._revision = changes.revision
        failed = {
            task: error for task, error in zip(due, results, strict=True) if isinstance(error, Exception)
        }
        self._retry = set(failed)
        for error in failed.values():
            raise error

    async def _records(self) -> AsyncIterator[TaskRecord]:
        after = None
        while True:
            page = await self._store.list(after=after, limit=500)
            for record in page.tasks:
                yield record
            after = page.next
            if after is None:
                return

    async def _apply(self, record: TaskRecord) -> None:
        served = self._catalogue.get(record.task_id)
        known = {target.version for target in record.versions}
        aliases: dict[str, tuple[Target, ...]] = {}
        problems: dict[str, Problem] = {}
        # The one that most requests use goes first, so that it is not behind a slow sibling.
        ordered = sorted(record.aliases.values(), key=lambda alias: alias.name != CURRENT)
        for at, alias in enumerate(ordered):
            if at:
                # What is ready serves now; the aliases that are still to come stay where they were.
                now = served.aliases if served else {}
                later = {a.name: now[a.name] for a in ordered[at:] if a.name in now}
                later = {n: ts for n, ts in later.items() if all(t.version in known for t in ts)}
                self._catalogue.put(_served(record, {**later, **aliases}, dict(problems)))
            before = served.aliases.get(alias.name) if served else None
            if before == alias.targets:
                aliases[alias.name] = before
                continue
            problem = await self._prepare_all(
                record.task_id, alias, served.problems.get(alias.name) if served else None
            )
            if problem is None:
                aliases[alias.name] = alias.targets
                continue
            problems[alias.name] = problem
            if before is not None and all(target.version in known for target in before):
                aliases[alias.name] = before
        self._catalogue.put(_served(record, aliases, problems))

    async def _prepare_all(self, task_id: str, alias: AliasRecord, before: Problem | None) -> Problem | None:
        versions = tuple(target.version for target in alias.targets)
        try:
            for version in versions:
                await self._prepare(task_id, version)
        except StoreUnavailable:
            raise  # no fault of the version: the whole task is tried again
        except (PromptStoreError, ServerError) as error:
            code, detail = error.code, str(error)
        except Exception:
            self._log.exception("prepare_failed", task=task_id, alias=alias.name)
            code, detail = "internal_error", "the log has the reason"
        else:
            return None
        if before is not None and (before.versions, before.code) == (versions, code):
            return before  # seen, counted and logged already
        self._metrics.refused_versions.labels(code).inc()
        self._log.warning("version_refused", task=task_id, alias=alias.name, code=code, detail=detail)
        return Problem(versions, code, detail, time.time())


def _served(
    record: TaskRecord, aliases: dict[str, tuple[Target, ...]], problems: dict[str, Problem]
) -> ServedTask:
    return ServedTask(
        record.task_id,
        record.revision,
        aliases,
        frozenset(version.version for version in record.versions),
        int(min((version.published_at for version in record.versions), default=0.0)),
        problems,
    )
