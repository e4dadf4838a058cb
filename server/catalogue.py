"""Which tasks this server serves, and with which version: the store's catalogue as seen from here.

Owns: the view in memory and how a request's task and version become one digest. Must not know: the store, the
device, HTTP. Changed on the event loop only: by `prompt_sync`, one whole task at a time, and by `guard`, which sends an
alias's requests past a version that fails, until the store's catalogue says the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Set
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
    """Why an alias does not serve what the store says: the versions that were refused, and the reason.

    `revision` is the store's from which on the alias lags behind; 0 where that is not known.
    """

    versions: tuple[str, ...]
    code: str
    detail: str
    since: float
    revision: int = 0


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


# Hears of a task as it was and as it is; None where there is none.
Listener = Callable[[str, ServedTask | None, ServedTask | None], None]


class Catalogue:
    """Tasks by id."""

    def __init__(self) -> None:
        self._tasks: dict[str, ServedTask] = {}
        self._detours: dict[tuple[str, str], tuple[Target, ...]] = {}
        self._listeners: list[Listener] = []
        self._missing: set[str] = set()
        self._troubled: set[str] = set()
        self.changes = 0  # so far

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[ServedTask]:
        return iter(self._tasks.values())

    @property
    def missing(self) -> Set[str]:
        """Ids of the tasks that the store lost. Its length is safe to ask for from any thread."""
        return self._missing

    @property
    def troubled(self) -> Set[str]:
        """Ids of the tasks with problems that the store may still have the cure for. As `missing` is."""
        return self._troubled

    def get(self, task_id: str) -> ServedTask | None:
        """The task, or None."""
        return self._tasks.get(task_id)

    def put(self, task: ServedTask) -> None:
        """Serve `task` from now on as it says."""
        before = self._tasks.get(task.task_id)
        if before != task:
            self._tasks[task.task_id] = task
            self._tell(task.task_id, before, task)

    def drop(self, task_id: str) -> None:
        """Serve the task no longer."""
        before = self._tasks.pop(task_id, None)
        if before is not None:
            self._tell(task_id, before, None)

    def listen(self, listener: Listener) -> None:
        """Call `listener` after every `put` and `drop` that changed something."""
        self._listeners.append(listener)

    def detour(self, task_id: str, alias: str, targets: tuple[Target, ...] | None) -> None:
        """Let the alias's requests go to `targets`, whatever the store says; None ends that."""
        if targets is None:
            self._detours.pop((task_id, alias), None)
        else:
            self._detours[task_id, alias] = targets

    def targets(self, task_id: str, alias: str) -> tuple[Target, ...]:
        """Where the alias's requests go; nothing where the alias does not serve."""
        task = self._tasks.get(task_id)
        return self._led(task, alias) if task is not None else ()

    def leads_to(self, task_id: str, version: str) -> bool:
        """Whether an alias of the task leads to the version."""
        task = self._tasks.get(task_id)
        aliases = task.aliases.values() if task is not None else ()
        return any(target.version == version for targets in aliases for target in targets)

    def lags(self, task_id: str, selector: str | None, number: int) -> bool:
        """Whether an alias leads elsewhere than the store says at revision `number`, for that was refused here."""
        task = self._tasks.get(task_id)
        alias = CURRENT if selector is None else selector
        problem = task.problems.get(alias) if task is not None else None
        if task is None or problem is None or number < problem.revision:
            return False
        # Where it leads to the very versions that were refused, nothing else answers in their stead.
        return tuple(target.version for target in task.aliases.get(alias, ())) != problem.versions

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
        targets = self._led(task, alias)
        if targets:
            return targets[0].version if len(targets) == 1 else _pick(targets, task_id, draw)
        check_alias(alias)
        if alias in task.problems:
            raise PromptUnavailable("the task's prompt cannot be served here; the admin API says why")
        raise UnknownAlias(f"the task has no alias {alias}")

    def _led(self, task: ServedTask, alias: str) -> tuple[Target, ...]:
        targets = task.aliases.get(alias, ())
        if targets and self._detours:
            return self._detours.get((task.task_id, alias), targets)
        return targets

    def _tell(self, task_id: str, before: ServedTask | None, now: ServedTask | None) -> None:
        self.changes += 1
        missing = now is not None and now.missing_in_store
        _keep(self._missing, task_id, missing)
        _keep(self._troubled, task_id, now is not None and bool(now.problems) and not missing)
        for listener in self._listeners:
            listener(task_id, before, now)


def _keep(ids: set[str], task_id: str, belongs: bool) -> None:
    if belongs:
        ids.add(task_id)
    else:
        ids.discard(task_id)


def _pick(targets: tuple[Target, ...], task_id: str, draw: str) -> str:
    """The target for a caller's key: the same on every replica and every time, while the weights stand.

    A race: each target's time is drawn from the key alone, and runs faster the more it weighs; the first one wins. So
    shares are as the weights say, and a change of weights moves only the keys that it must: a target that gains keeps
    all it had, and one that is taken out leaves its keys to the others, whose own stay where they were.
    """
    return min(targets, key=lambda target: _time(task_id, target.version, draw) / target.weight).version


def _time(task_id: str, version: str, draw: str) -> float:
    # A hash and not a random number. 53 bits, so that the float is exact; never 0 or 1.
    digest = hashlib.sha256(f"{task_id}\0{version}\0{draw}".encode()).digest()
    return -math.log(((int.from_bytes(digest[:8]) >> 11) + 0.5) / 2**53)
