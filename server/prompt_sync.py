"""Follows the store: a version that an alias moves to is on the device before the catalogue says so.

Owns: when the catalogue changes. Must not know: HTTP, tensors, how prompts are checked. One task is refreshed
at a time, always from the store's present state, so that no late answer can move an alias back. What cannot
be served is counted and shown; the old version stays. A store that lost its history takes no task away: what
it no longer has is served on and marked. A task whose record cannot be understood holds up no other.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

import structlog

from prompt_store import (
    PromptStore,
    PromptStoreError,
    Revision,
    StoreUnavailable,
    Target,
    TaskRecord,
    UnknownTask,
)
from server.catalogue import CURRENT, NO_PROBLEMS, Catalogue, Problem, ServedTask
from server.mending import Mending
from server.metrics import Metrics
from server.refusals import Refusals, code_of
from server.snapshot import Saved
from server.view import View

_WATCH_SECONDS: Final = 0.5  # a quarter of how far behind the view may be
_MEND_SECONDS: Final = 2.0  # between two tries at versions that were refused, at first
_RETRY_SECONDS: Final = (0.1, 0.2, 0.5)  # no longer: what heals is to be seen at once
_TASKS_AT_ONCE: Final = 8
_PAGE: Final = 100  # the loop does nothing else while a page is read
_WARM_TASKS: Final = 64  # at start; the others are loaded by their first request


class PromptSync:
    """Keeps `catalogue` in step with `store`; `refusals` makes versions ready, or says why not."""

    def __init__(
        self,
        store: PromptStore,
        catalogue: Catalogue,
        refusals: Refusals,
        view: View,
        metrics: Metrics,
    ) -> None:
        self._store, self._catalogue, self._refusals = store, catalogue, refusals
        self._view, self._metrics = view, metrics
        self._watched: Revision | None = None  # what `watch` is asked about next; the view may be behind it
        self._mended, self._mending = time.monotonic(), Mending(_MEND_SECONDS)
        self._serving = False
        self._locks = [asyncio.Lock() for _ in range(64)]  # shared by tasks with equal hashes
        self._gate = asyncio.Semaphore(_TASKS_AT_ONCE)
        self._retry: set[str] = set()  # tasks whose refresh met a store that did not answer
        self._log = structlog.get_logger("promptmux.sync")
        metrics.watch(metrics.tasks, lambda: len(catalogue))
        metrics.watch(metrics.missing_tasks, lambda: len(catalogue.missing))

    def recall(self, saved: Saved) -> None:
        """Begin with what was served when the snapshot was written; `start` sets right what changed since."""
        for task in saved.tasks:
            self._catalogue.put(task)
        self._view.recall(saved.revision, saved.age)

    def serve(self) -> None:
        """Requests come from now on: whatever changes is made ready first."""
        self._serving = True

    async def start(self, *, lost: bool = False) -> None:
        """Take in every task of the store. Raises what the store raises; may then be called again.

        `lost`: it is known already that the store has less than was known here.
        """
        as_of = time.monotonic()
        # Before the list: what changes meanwhile comes again by `watch`.
        revision = await self._store.revision()
        lost = lost or self._view.goes_back(revision)
        unseen = {task.task_id for task in self._catalogue}
        after, at = None, 0
        while True:
            page = await self._store.list(after=after, limit=_PAGE)
            unseen.difference_update(record.task_id for record in page.tasks)
            unseen.difference_update(page.unreadable)
            self._retry.update(page.unreadable)  # the refresh says what is wrong with each
            await asyncio.gather(
                *(
                    self._take_in(record, warm=at + nth < _WARM_TASKS, lost=lost)
                    for nth, record in enumerate(page.tasks)
                )
            )
            after, at = page.next, at + len(page.tasks)
            if after is None:
                break
        for task_id in unseen:
            await self._absent(task_id, lost=lost)
        if lost:
            missing = len(self._catalogue.missing)
            self._metrics.history_lost.inc()
            self._log.warning(
                "store_history_lost", epoch=revision.epoch, revision=revision.number, kept_tasks=missing
            )
        self._watched = revision
        self._view.advance(revision, as_of, lost=lost)

    async def _take_in(self, record: TaskRecord, *, warm: bool, lost: bool) -> None:
        # What is served goes on until its successor is ready: an alias may have moved while this server was down.
        if warm or self._serving or self._catalogue.get(record.task_id) is not None:
            async with self._lock(record.task_id), self._gate:
                try:
                    await self._apply(record, lost=lost)
                except StoreUnavailable:
                    raise
                except Exception as error:
                    self._refusals.not_understood(record.task_id, error)
        else:  # nobody asks yet: the first request loads it, and rehearses it then
            aliases = {name: alias.targets for name, alias in record.aliases.items()}
            self._catalogue.put(_served(record, aliases, {}))

    async def _absent(self, task_id: str, *, lost: bool) -> None:
        """The store's list does not have a task that is served."""
        async with self._lock(task_id):
            served = self._catalogue.get(task_id)
            if served is None:
                return
            if lost:
                # Revision 0: whatever the store says about it from now on is news.
                self._catalogue.put(replace(served, revision=0, missing_in_store=True))
            elif not served.missing_in_store:
                self._catalogue.drop(task_id)

    async def follow(self) -> None:
        """Follow the store for as long as the task lives; a store that fails stops nothing."""
        failures = 0
        while True:
            try:
                await self._step()
                failures = 0
            except Exception as error:
                code = code_of(error)
                self._metrics.sync_failures.labels(code).inc()
                self._log.warning(
                    "store_sync_failed", code=code, exc_info=not isinstance(error, PromptStoreError)
                )
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1

    async def refresh(self, task_id: str) -> None:
        """Bring one task up to date now."""
        async with self._lock(task_id), self._gate:
            try:
                try:
                    record = await self._store.task(task_id)
                except UnknownTask:
                    await self._gone(task_id)
                else:
                    await self._apply(record)
            except StoreUnavailable:
                raise
            except Exception as error:
                self._refusals.not_understood(task_id, error)

    async def _gone(self, task_id: str) -> None:
        """The store says that there is no such task: drop it if it was deleted, not if it was lost."""
        served = self._catalogue.get(task_id)
        if served is None:
            return
        try:
            await self._store.history(task_id, limit=1)
        except UnknownTask:
            return  # a deletion leaves a tombstone; a store that was emptied this moment has none
        now = await self._store.revision()
        # One that was set back has perhaps that of an earlier deletion.
        if not self._view.goes_back(now) and now.number >= served.revision:
            self._catalogue.drop(task_id)

    async def refresh_after_write(self, task_id: str) -> None:
        """Show a write that the store has acknowledged; where the store is away again, as soon as it is back."""
        try:
            await self.refresh(task_id)
        except PromptStoreError as error:
            self._log.warning("store_sync_failed", code=error.code, exc_info=False)
            self._retry.add(task_id)

    async def _step(self) -> None:
        assert self._watched is not None, "start comes first"
        changes = await self._store.watch(self._watched, timeout=_WATCH_SECONDS)
        as_of = time.monotonic()
        if changes.reset:
            self._retry = set()  # all are taken in anew; what was lost must not be asked about again
            await self.start(lost=True)
            return
        retry, self._retry = self._retry, set()
        due = list(retry.union(changes.tasks))
        if not due and as_of - self._mended > _MEND_SECONDS:
            # A quiet moment: what was broken may have been mended without a change in the catalogue.
            due = self._mending.due(self._catalogue.troubled, as_of)
            self._mended = as_of
        results = await asyncio.gather(*map(self.refresh, due), return_exceptions=True)
        self._watched = changes.revision
        failed = {
            task: error for task, error in zip(due, results, strict=True) if isinstance(error, Exception)
        }
        self._retry |= failed.keys()
        for error in failed.values():
            raise error
        self._view.advance(changes.revision, as_of)

    def _lock(self, task_id: str) -> asyncio.Lock:
        return self._locks[hash(task_id) % len(self._locks)]

    async def _apply(self, record: TaskRecord, *, lost: bool = False) -> None:
        served = self._catalogue.get(record.task_id)
        if served is not None and record.revision < served.revision and not lost:
            return  # from a copy of the store that lags behind
        if served is not None and (lost or served.missing_in_store) and _half_restored(served, record):
            # Whoever brings the task back publishes first and moves the alias then: requests must not see that.
            versions = tuple({*served.versions, *(version.version for version in record.versions)})
            kept = replace(served, revision=record.revision, versions=versions, missing_in_store=True)
            self._catalogue.put(kept)
            return
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
            trouble = served.problems.get(alias.name) if served else None
            if before == alias.targets and trouble is None:
                aliases[alias.name] = before
                continue
            problem = await self._refusals.prepare(record.task_id, alias, trouble)
            if problem is None:
                aliases[alias.name] = alias.targets
                continue
            problems[alias.name] = problem
            if before is not None and all(target.version in known for target in before):
                aliases[alias.name] = before
        self._catalogue.put(_served(record, aliases, problems))


def _half_restored(served: ServedTask, record: TaskRecord) -> bool:
    return CURRENT in served.aliases and CURRENT not in record.aliases


def _served(
    record: TaskRecord, aliases: dict[str, tuple[Target, ...]], problems: dict[str, Problem]
) -> ServedTask:
    # One string for each digest and no empty tables: there may be 100,000 tasks.
    names = {version.version: version.version for version in record.versions}
    return ServedTask(
        record.task_id,
        record.revision,
        {
            name: tuple(Target(names.get(one.version, one.version), one.weight) for one in targets)
            for name, targets in aliases.items()
        },
        tuple(names),
        int(min((version.published_at for version in record.versions), default=0.0)),
        problems or NO_PROBLEMS,
    )
