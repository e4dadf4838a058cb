"""What cannot be served as the store says, and how that is said: counted and logged once, shown with the alias.

Owns: when a version is refused, and the problem that an alias shows then. Must not know: the store, HTTP, how versions
are checked. What served before serves on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog

from prompt_store import AliasRecord, NotFound, PromptStoreError, StoreUnavailable
from server.catalogue import CURRENT, NO_PROBLEMS, Catalogue, Problem, ServedTask
from server.errors import ServerError
from server.metrics import Metrics

# Seconds until a version that is being fetched is behind: longer its task holds up no other.
_PATIENCE: Final = 2.0


class Refusals:
    """Makes versions ready; `prepare(task_id, version)` loads one or raises. Problems go into `catalogue`."""

    def __init__(
        self,
        catalogue: Catalogue,
        prepare: Callable[[str, str], Coroutine[Any, Any, None]],
        metrics: Metrics,
    ) -> None:
        self._catalogue, self._prepare, self._metrics = catalogue, prepare, metrics
        self._under_way: dict[str, asyncio.Task[None]] = {}  # by version
        self._arrived: set[str] = set()
        self._log = structlog.get_logger("promptmux.sync")

    async def prepare(
        self, task_id: str, alias: AliasRecord, before: Problem | None, *, patient: bool, hurry: bool
    ) -> Problem | None:
        """Make all targets of an alias ready, or say why not. `before` is what it shows now.

        Raises StoreUnavailable if `patient`: it is no fault of the version, and the task is to be tried again. In a
        `hurry` what takes long is a problem for the time being.
        """
        versions = tuple(target.version for target in alias.targets)
        try:
            for version in versions:
                await self._make_ready(task_id, version, _PATIENCE if hurry else None)
        except Exception as error:
            if patient and isinstance(error, StoreUnavailable) and not isinstance(error, _StillFetched):
                raise
            if before is not None and (before.versions, before.code) == (versions, code_of(error)):
                return before  # seen, counted and logged already
            # An alias that was moved from one bad version to another lags since the first.
            revision = alias.revision if before is None else before.revision
            return self._refuse(task_id, alias.name, versions, error, revision)
        return None

    async def _make_ready(self, task_id: str, version: str, patience: float | None) -> None:
        """Raises _StillFetched when it takes long: it goes on, and is told by `take_arrived`."""
        work = self._under_way.get(version)
        if work is None:
            work = self._under_way[version] = asyncio.create_task(self._prepare(task_id, version))
            work.add_done_callback(partial(self._ended, version))
        await asyncio.wait([work], timeout=patience)
        if not work.done():
            work.add_done_callback(lambda _: self._arrived.add(task_id))
            raise _StillFetched("the version is still being fetched from the store")
        work.result()

    def take_arrived(self) -> set[str]:
        """The tasks with a version that was behind, and is ready or has failed by now. Told once."""
        arrived, self._arrived = self._arrived, set()
        return arrived

    def _ended(self, version: str, work: asyncio.Task[None]) -> None:
        del self._under_way[version]
        if not work.cancelled():
            work.exception()  # where nobody waits any longer, asyncio need not complain

    async def aclose(self) -> None:
        """End what is under way."""
        for work in list(self._under_way.values()):
            work.cancel()

    def found(self, task_id: str, version: str, error: Exception) -> None:
        """A load for a request has found out that a version cannot be served: its aliases are to show it."""
        served = self._catalogue.get(task_id)
        # No fault of the version: a store that is away, a version that was deleted a moment ago.
        if served is None or isinstance(error, StoreUnavailable | NotFound):
            return
        problems = dict(served.problems)
        for name, targets in served.aliases.items():
            versions = tuple(target.version for target in targets)
            if version in versions and name not in problems:
                problems[name] = self._refuse(task_id, name, versions, error, 0)
        self._catalogue.put(replace(served, problems=problems or NO_PROBLEMS))

    def not_understood(self, task_id: str, error: Exception) -> None:
        """Nothing can be made of what the store has about a task: nobody knows which of its aliases have moved."""
        served = self._catalogue.get(task_id) or ServedTask(task_id, 0, {}, (), 0)
        code, detail = code_of(error), _detail(error)
        if any((problem.versions, problem.code) == ((), code) for problem in served.problems.values()):
            return  # counted and logged already
        self._metrics.unreadable_tasks.labels(code).inc()
        self._log.error("task_not_followed", task=task_id, code=code, detail=detail, exc_info=_trace(error))
        problem = Problem((), code, detail, time.time())
        names = {CURRENT, *served.aliases}
        self._catalogue.put(replace(served, problems={**served.problems, **dict.fromkeys(names, problem)}))

    def _refuse(
        self, task_id: str, alias: str, versions: tuple[str, ...], error: Exception, revision: int
    ) -> Problem:
        code, detail = code_of(error), _detail(error)
        self._metrics.refused_versions.labels(code).inc()
        self._log.warning(
            "version_refused", task=task_id, alias=alias, code=code, detail=detail, exc_info=_trace(error)
        )
        return Problem(versions, code, detail, time.time(), revision)


class _StillFetched(StoreUnavailable):
    """Its bytes come, but slowly."""


def code_of(error: Exception) -> str:
    """The stable code of an error of ours, `internal_error` for any other."""
    return error.code if isinstance(error, PromptStoreError | ServerError) else "internal_error"


def _detail(error: Exception) -> str:
    """Errors of ours are written for people; what others say may hold anything."""
    return "the log has the reason" if _trace(error) else str(error)


def _trace(error: Exception) -> Exception | None:
    return None if isinstance(error, PromptStoreError | ServerError) else error
