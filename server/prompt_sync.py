"""Follows the store: what changed is taken in task by task, and then the view says so.

Owns: when the store is looked at, and what is known to be taken in. Must not know: HTTP, tensors, what a task's record
means to a request (`task_sync`). A store that fails stops nothing. One that lost its history takes no task away: what
it no longer has is served on and marked, and until all it has was taken in anew the loss is not forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from typing import Final

import structlog

from prompt_store import (
    PromptStore,
    PromptStoreError,
    Revision,
    StoreUnavailable,
)
from server.catalogue import Catalogue
from server.mending import Mending
from server.metrics import Metrics
from server.refusals import Refusals, code_of
from server.snapshot import Saved
from server.task_sync import TaskSync
from server.view import View

_WATCH_SECONDS: Final = 0.5  # a quarter of how far behind the view may be
_MEND_SECONDS: Final = 2.0  # between two tries at versions that were refused, at first
_RETRY_SECONDS: Final = (0.1, 0.2, 0.5)  # no longer: what heals is to be seen at once
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
        self._store, self._catalogue, self._view, self._metrics = store, catalogue, view, metrics
        self._tasks = TaskSync(store, catalogue, refusals, view)
        self._watched: Revision | None = None  # what `watch` is asked about next; the view may be behind it
        self._mending = Mending(_MEND_SECONDS)
        self._serving = False
        self._answers = True  # the store did, when it was asked last
        self._lost = False  # history is known to be lost, and not all was taken in anew since
        self._retry: set[str] = set()  # tasks whose refresh met a store that did not answer
        self._log = structlog.get_logger("promptmux.sync")
        metrics.watch(metrics.tasks, lambda: len(catalogue))
        metrics.watch(metrics.missing_tasks, lambda: len(catalogue.missing))
        metrics.watch(metrics.troubled_tasks, lambda: len(catalogue.troubled))

    def recall(self, saved: Saved) -> None:
        """Begin with what was served when the snapshot was written; `start` sets right what changed since."""
        for task in saved.tasks:
            self._catalogue.put(task)
        self._view.recall(saved.revision, saved.age)

    def serve(self) -> None:
        """Requests come from now on: whatever changes is made ready first."""
        self._serving = True

    async def start(self) -> None:
        """Take in every task of the store. Raises what the store raises; may then be called again."""
        as_of = time.monotonic()
        # Before the list: what changes meanwhile comes again by `watch`.
        revision = await self._store.revision()
        # Once known, it is known until all was taken in: this may fail halfway, and then the store may look whole.
        self._lost = lost = self._lost or await self._was_lost()
        unseen = {task.task_id for task in self._catalogue}
        failed: dict[str, StoreUnavailable] = {}
        after, at = None, 0
        while True:
            page = await self._store.list(after=after, limit=_PAGE)
            unseen.difference_update(record.task_id for record in page.tasks)
            unseen.difference_update(page.unreadable)
            self._retry.update(page.unreadable)  # the refresh says what is wrong with each
            if lost:
                self._tasks.distrust(page.unreadable)
            failed |= await self._tasks.each(
                [record.task_id for record in page.tasks],
                [
                    self._tasks.take_in(record, ready=self._serving or at + nth < _WARM_TASKS, lost=lost)
                    for nth, record in enumerate(page.tasks)
                ],
            )
            after, at = page.next, at + len(page.tasks)
            if after is None:
                break
        for error in failed.values():
            raise error
        if lost:
            for task_id in unseen:
                await self._tasks.keep(task_id)
            self._metrics.history_lost.inc()
            self._log.warning(
                "store_history_lost",
                epoch=revision.epoch,
                revision=revision.number,
                kept_tasks=len(self._catalogue.missing),
            )
        elif await self._lost_some(unseen):
            self._lost = True
            await self.start()  # no record can be trusted to be of the history that is served
            return
        self._lost = False
        self._watched = revision
        self._view.advance(revision, as_of, lost=lost)

    async def _was_lost(self) -> bool:
        """Whether the store has lost history that is served here: what a snapshot holds, after a start."""
        known = self._view.revision
        return known is not None and (await self._store.watch(known, timeout=0.0)).reset

    async def _lost_some(self, unseen: Collection[str]) -> bool:
        """Whether the store lost one of these, which it did not list: a task that was deleted has a tombstone."""
        known = set(self._catalogue.missing)
        suspects = [task_id for task_id in unseen if task_id not in known]
        failed = await self._tasks.each(suspects, map(self.refresh, suspects))
        for error in failed.values():
            raise error
        return not self._catalogue.missing <= known

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

    async def mend(self) -> None:
        """Try what cannot be served again and again: it may be mended without a change in the catalogue."""
        while True:
            await asyncio.sleep(_MEND_SECONDS)
            for task_id in self._mending.due(self._catalogue.troubled, time.monotonic()):
                if not self._answers:
                    break
                with contextlib.suppress(StoreUnavailable):  # then it stays as it is
                    await self.refresh(task_id)

    async def refresh(self, task_id: str) -> None:
        """Bring one task up to date now. Raises StoreUnavailable."""
        await self._tasks.refresh(task_id)

    async def refresh_after_write(self, task_id: str) -> None:
        """Show a write that the store has acknowledged; where the store is away again, as soon as it is back."""
        try:
            await self.refresh(task_id)
        except PromptStoreError as error:
            self._log.warning("store_sync_failed", code=error.code, exc_info=False)
            self._retry.add(task_id)

    async def _step(self) -> None:
        assert self._watched is not None, "start comes first"
        if self._lost:
            await self.start()
            return
        try:
            changes = await self._store.watch(self._watched, timeout=_WATCH_SECONDS)
        except Exception:
            self._answers = False
            raise
        if not self._answers:
            self._answers = True
            self._tasks.forgive()
            self._mending.afresh()  # what could not be had may be there now
        as_of = time.monotonic()
        if changes.reset:
            self._retry = set()  # all are taken in anew; what was lost must not be asked about again
            self._lost = True
            await self.start()
            return
        retry, self._retry = self._retry, set()
        due = retry.union(changes.tasks)
        failed = await self._tasks.each(due, map(self.refresh, due))
        self._watched = changes.revision
        self._retry |= failed.keys()
        for error in failed.values():
            raise error
        self._view.advance(changes.revision, as_of)
