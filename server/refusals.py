"""What cannot be served as the store says, and how that is said: counted and logged once, shown with the alias.

Owns: when a version is refused, and the problem that an alias shows then. Must not know: the store, HTTP, how versions
are checked. What served before serves on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from prompt_store import AliasRecord, NotFound, PromptStoreError, StoreUnavailable
from server.catalogue import CURRENT, NO_PROBLEMS, Catalogue, Problem, ServedTask
from server.errors import ServerError
from server.metrics import Metrics


class Refusals:
    """Makes versions ready; `prepare(task_id, version)` loads one or raises. Problems go into `catalogue`."""

    def __init__(
        self, catalogue: Catalogue, prepare: Callable[[str, str], Awaitable[None]], metrics: Metrics
    ) -> None:
        self._catalogue, self._prepare, self._metrics = catalogue, prepare, metrics
        self._log = structlog.get_logger("promptmux.sync")

    async def prepare(self, task_id: str, alias: AliasRecord, before: Problem | None) -> Problem | None:
        """Make all targets of an alias ready, or say why not. `before` is what it shows now."""
        versions = tuple(target.version for target in alias.targets)
        try:
            for version in versions:
                await self._prepare(task_id, version)
        except StoreUnavailable:
            raise  # no fault of the version: the whole task is tried again
        except Exception as error:
            if before is not None and (before.versions, before.code) == (versions, code_of(error)):
                return before  # seen, counted and logged already
            # An alias that was moved from one bad version to another lags since the first.
            revision = alias.revision if before is None else before.revision
            return self._refuse(task_id, alias.name, versions, error, revision)
        return None

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


def code_of(error: Exception) -> str:
    """The stable code of an error of ours, `internal_error` for any other."""
    return error.code if isinstance(error, PromptStoreError | ServerError) else "internal_error"


def _detail(error: Exception) -> str:
    """Errors of ours are written for people; what others say may hold anything."""
    return "the log has the reason" if _trace(error) else str(error)


def _trace(error: Exception) -> Exception | None:
    return None if isinstance(error, PromptStoreError | ServerError) else error
