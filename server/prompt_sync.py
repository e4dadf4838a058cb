"""Follows the store: what changed is taken in task by task, and then the view says so.

Owns: when the store is looked at, and what is known to be taken in. Must not know: HTTP, tensors, what a task's record
means to a request (`task_sync`). A store that fails stops nothing. One that lost its history takes no task away: what
it no longer has is served on and marked, and until all it has was taken in anew the loss is not forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

import structlog

from prompt_store import (
    PromptStore,
    PromptStoreError,
    Revision,
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
        self._refusals, self._tasks = refusals, TaskSync(store, catalogue, refusals, view)
        self._watched: Revision | None = None  # what `watch` is asked about next; the view may be behind it
        self._mending = Mending(_MEND_SECONDS)
        self._serving = False
        self._answers = True  # the store did, when it was asked last
        self._lost_at: Revision | None = None  # where the store stood when history was found to be lost
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

    async def start(self) -> None:
        """Take in every task of the store. Raises what the store raises; may then be called again."""
        as_of = time.monotonic()
        newest = max((task.revision for task in self._catalogue), default=0)
        # Before the list: what changes meanwhile comes again by `watch`.
        revision = await self._store.revision()
        if self._tasks.lost or await self._was_lost(newest, revision):
            self._lose(revision)
        unseen = {task.task_id for task in self._catalogue}
        after, at = None, 0
        while True:
            page = await self._store.list(after=after, limit=_PAGE)
            unseen.difference_update(record.task_id for record in page.tasks)
            unseen.difference_update(page.unreadable)
            self._retry.update(page.unreadable)  # the refresh says what is wrong with each
            if self._tasks.lost:
                self._tasks.distrust(page.unreadable)
            await asyncio.gather(
                *(
                    self._tasks.take_in(record, warm=at + nth < _WARM_TASKS, serving=self._serving)
                    for nth, record in enumerate(page.tasks)
                )
            )
            after, at = page.next, at + len(page.tasks)
            if after is None:
                break
        if not self._tasks.lost and await self._lost_some(unseen):
            await self.start()  # no record can be trusted to be of the history that is served
            return
        lost = self._tasks.lost
        if lost:
            for task_id in unseen:
                await self._tasks.keep(task_id, revision.epoch)
            self._metrics.history_lost.inc()
            self._log.warning(
                "store_history_lost",
                epoch=revision.epoch,
                revision=revision.number,
                kept_tasks=len(self._catalogue.missing),
            )
        self._watched = self._lost_at or revision  # of a loss: what changed between two tries comes again
        self._tasks.lost, self._lost_at = False, None
        self._view.advance(revision, as_of, lost=lost)

    def _lose(self, revision: Revision) -> None:
        """Know of a loss until all was taken in: that may fail halfway, and then the store may look whole."""
        self._tasks.lost, self._lost_at = True, self._lost_at or revision

    async def _was_lost(self, newest: int, revision: Revision) -> bool:
        """Whether the store, at `revision`, has lost history that is served here, up to a task's revision `newest`."""
        known = self._view.revision
        if known is None:
            return False
        return newest > revision.number or (await self._store.watch(known, timeout=0.0)).reset

    async def _lost_some(self, unseen: Collection[str]) -> bool:
        """Whether the store lost one of these, which it did not list: a task that was deleted has a tombstone."""
        known = set(self._catalogue.missing)
        suspects = [task_id for task_id in unseen if task_id not in known]
        for at in range(0, len(suspects), _PAGE):
            failed = await self._tasks.refresh_all(suspects[at : at + _PAGE])
            if not self._catalogue.missing <= known:
                self._lose(await self._store.revision())
                return True
            for error in failed.values():
                raise error
        return False

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
            if self._answers and not self._tasks.lost:
                due = self._mending.due(self._catalogue.troubled, time.monotonic())
                try:
                    await self._tasks.refresh_all(due)  # where the store fails, they stay as they are
                except Exception as error:
                    self._log.exception("mending_failed", exc_info=error)

    async def aclose(self) -> None:
        """End what is under way beside the parts that run."""
        await self._refusals.aclose()

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
        if self._tasks.lost:
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
            self._lose(changes.revision)
            await self.start()
            return
        retry, self._retry = self._retry, set()
        failed = await self._tasks.refresh_all(retry.union(changes.tasks, self._refusals.take_arrived()))
        self._watched = changes.revision
        self._retry |= failed.keys()
        for error in failed.values():
            raise error
        self._view.advance(changes.revision, as_of)
