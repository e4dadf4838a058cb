"""Which tasks this server serves, and with which version: the store's catalogue as seen from here.

Owns: the view in memory and how a request's task and version become one digest. Must not know: the store, the
device, HTTP. Changed by `prompt_sync` only, one whole task at a time, on the event loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from prompt_store import (
    Target,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    check_alias,
    check_task_id,
    is_version,
)
from server.errors import PromptUnavailable

CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an alias does not serve what the store says: the versions that were refused, and the reason."""

    versions: tuple[str, ...]
    code: str
    detail: str
    since: float


NO_PROBLEMS: Mapping[str, Problem] = MappingProxyType({})  # one for all: there may be 100,000 tasks


@dataclass(frozen=True, slots=True)
class ServedTask:
    """One task as served. `aliases` may lag behind the store where `problems` says why."""

    task_id: str
    revision: int
    aliases: Mapping[str, tuple[Target, ...]]
    versions: Collection[str]
    created: int
    problems: Mapping[str, Problem] = field(default_factory=lambda: NO_PROBLEMS)
    missing_in_store: bool = False  # the store lost it with its history; it is served on

    def current(self) -> str | None:
        """The version that most requests get, None where the task has no current one."""
        targets = self.aliases.get(CURRENT, ())
        return max(targets, key=lambda target: target.weight).version if targets else None


class Catalogue:
    """Tasks by id."""

    def __init__(self) -> None:
        self._tasks: dict[str, ServedTask] = {}
        self._listeners: list[Callable[[str], None]] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[ServedTask]:
        return iter(self._tasks.values())

    def get(self, task_id: str) -> ServedTask | None:
        """The task, or None."""
        return self._tasks.get(task_id)

    def put(self, task: ServedTask) -> None:
        """Serve `task` from now on as it says."""
        if self._tasks.get(task.task_id) != task:
            self._tasks[task.task_id] = task
            self._tell(task.task_id)

    def drop(self, task_id: str) -> None:
        """Serve the task no longer."""
        if self._tasks.pop(task_id, None) is not None:
            self._tell(task_id)

    def lags(self, task_id: str, selector: str | None) -> bool:
        """Whether an alias leads elsewhere than the store says, for what it says was refused here."""
        task = self._tasks.get(task_id)
        return task is not None and (CURRENT if selector is None else selector) in task.problems

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the id of every task that is put or dropped from now on."""
        self._listeners.append(listener)

    def _tell(self, task_id: str) -> None:
        for listener in self._listeners:
            listener(task_id)

    def resolve(self, task_id: str, selector: str | None, draw: str) -> str:
        """The version for one request. `selector` is an alias or a digest; `draw` decides between weights."""
        task = self._tasks.get(task_id)
        if task is None:
            check_task_id(task_id)
            raise UnknownTask("there is no such task; GET /tasks lists them")
        if selector is not None and is_version(selector):
            if selector not in task.versions:
                raise UnknownVersion("the task has no such version")
            return selector
        alias = CURRENT if selector is None else selector
        targets = task.aliases.get(alias)
        if targets:
            return targets[0].version if len(targets) == 1 else _pick(targets, draw)
        check_alias(alias)
        if alias in task.problems:
            raise PromptUnavailable("the task's prompt cannot be served here; the admin API says why")
        raise UnknownAlias(f"the task has no alias {alias}")


def _pick(targets: tuple[Target, ...], draw: str) -> str:
    # A hash and not a random number: the same request id gets the same version, on every replica.
    total = sum(target.weight for target in targets)
    point = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:8]) % total
    for target in targets:
        point -= target.weight
        if point < 0:
            return target.version
    raise AssertionError("weights are positive")
