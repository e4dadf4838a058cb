"""Takes versions that fail out of service: out of a split, and off an alias that was moved to them a moment ago.

Owns: whose fault a failure is, when there are enough of them, and the move in the store. Must not know: HTTP, the
device, how a version is asked. A failure counts against a version only when another one of the alias answers the same
texts and it then fails with them again: a text that no prompt can take, a device that is gone or was short of memory
for a moment, is nobody's fault. The reasons are in decision 0015.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from prompt_store import (
    AliasRecord,
    NotFound,
    PromptStore,
    PromptStoreError,
    RevisionConflict,
    StoreUnavailable,
    Target,
    TaskRecord,
)
from server.catalogue import Catalogue
from server.errors import PROMPT_FAULTS, PromptUnavailable
from server.metrics import Metrics
from server.trial import Trial, Trials

ACTOR: Final = "auto-rollback"
_CHECKS_AT_ONCE: Final = 8  # of one version
_MOVES_AT_ONCE: Final = 8
_RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# Whoever asks sooner for a version that could not be loaded hears of that same try: the cache remembers it.
_LOAD_AGAIN_SECONDS: Final = 2.5

Ask = Callable[[str], Awaitable[object]]


class Guard:
    """Watches the versions on trial. `refresh(task_id)` lets this server see what was written to the store."""

    def __init__(
        self,
        store: PromptStore,
        catalogue: Catalogue,
        refresh: Callable[[str], Awaitable[None]],
        metrics: Metrics,
        *,
        max_errors: int,
    ) -> None:
        """`max_errors` failures are enough; 0: none ever are."""
        self._store, self._catalogue, self._refresh = store, catalogue, refresh
        self._metrics, self._max_errors = metrics, max_errors
        self._trials = Trials(catalogue.detour)
        self._checks: set[asyncio.Task[None]] = set()
        self._checking: Counter[str] = Counter()
        self._due: set[str] = set()  # tasks with a version that is out here, and may not be in the store
        self._moving: set[str] = set()  # tasks that `work` is at
        self._gate = asyncio.Semaphore(_MOVES_AT_ONCE)
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("promptmux.guard")
        catalogue.listen(self._trials.follow)
        for kind in PROMPT_FAULTS:  # from 0 on, so that the first one is an increase
            metrics.quarantines.labels(kind.code)
            metrics.auto_rollbacks.labels(kind.code)

    def quarantined(self, task_id: str, alias: str) -> dict[str, str]:
        """Versions that the alias leads to and this server does not use, each with its error's code."""
        trial = self._trials.of(task_id).get(alias)
        return dict(trial.out) if trial is not None else {}

    def blame(self, task_id: str, version: str, error: BaseException, ask: Ask) -> None:
        """Hear that a request failed under `version`. `ask(which)` tries the same texts under that one."""
        code = _fault(error)
        if code is None or not self._max_errors or not self._on_trial(task_id, version):
            return
        if self._checking[version] >= min(self._max_errors, _CHECKS_AT_ONCE):
            return  # what is being looked at will do; a flood of failures must not become a flood of checks
        self._checking[version] += 1
        check = asyncio.create_task(self._check(task_id, version, code, ask))
        self._checks.add(check)
        check.add_done_callback(lambda done: self._checked(version, done))

    async def work(self) -> None:
        """Write to the store what was found, for as long as the task lives; again and again while that fails."""
        async with asyncio.TaskGroup() as movers:  # each apart: one that fails must not hold up the others
            while True:
                await self._wake.wait()
                self._wake.clear()
                for task_id in self._due - self._moving:
                    self._moving.add(task_id)
                    movers.create_task(self._pursue(task_id))

    async def aclose(self) -> None:
        """End the checks that are under way."""
        for check in self._checks:
            check.cancel()

    # -- whose fault it is -------------------------------------------------------------------------------

    def _on_trial(self, task_id: str, version: str) -> list[tuple[str, Trial]]:
        trials = self._trials.of(task_id).items()
        return [(alias, trial) for alias, trial in trials if trial.concerns(version)]

    async def _check(self, task_id: str, version: str, code: str, ask: Ask) -> None:
        others = dict.fromkeys(
            other for _, trial in self._on_trial(task_id, version) for other in trial.others(version)
        )
        sound, unsure = "", False
        for other in others:
            try:
                await ask(other)
            except Exception as error:  # of any kind: it is no proof
                unsure = unsure or _fault(error) is None
            else:
                sound = other
                break
        # After the other one: whatever was wrong with the device was over by then.
        if not await self._fails_again(version, code, ask):
            return
        for alias, trial in self._on_trial(task_id, version):  # again: it may have changed meanwhile
            if sound in trial.others(version):
                trial.faults[version] += 1
                if trial.faults[version] >= self._max_errors:
                    self._quarantine(task_id, alias, trial, version, code)
            elif not sound and not unsure and not trial.desperate:
                trial.desperate = True
                self._log.error("no_healthy_version", task=task_id, alias=alias, version=version, code=code)

    async def _fails_again(self, version: str, code: str, ask: Ask) -> bool:
        if code == PromptUnavailable.code:
            await asyncio.sleep(_LOAD_AGAIN_SECONDS)
        try:
            await ask(version)
        except Exception as error:
            return _fault(error) is not None
        return False

    def _checked(self, version: str, check: asyncio.Task[None]) -> None:
        self._checks.discard(check)
        self._checking[version] -= 1
        if not self._checking[version]:
            del self._checking[version]
        if not check.cancelled() and (error := check.exception()) is not None:
            self._log.error("check_broke", exc_info=error)

    def _quarantine(self, task_id: str, alias: str, trial: Trial, version: str, code: str) -> None:
        self._trials.exclude(task_id, alias, version, code)
        self._metrics.quarantines.labels(code).inc()
        self._log.error(
            "version_quarantined",
            task=task_id,
            alias=alias,
            version=version,
            code=code,
            failures=trial.faults[version],
        )
        self._due.add(task_id)
        self._wake.set()

    # -- the move in the store ---------------------------------------------------------------------------

    async def _pursue(self, task_id: str) -> None:
        failures = 0
        while task_id in self._due:
            self._due.discard(task_id)  # what is found meanwhile comes in the next turn
            if await self._settled(task_id):
                failures = 0
                continue
            self._due.add(task_id)
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1
        self._moving.discard(task_id)

    async def _settled(self, task_id: str) -> bool:
        """Whether nothing of the task is out any more: it is moved in the store, and the catalogue has seen that."""
        try:
            async with self._gate:
                await self._give_up(task_id)
        except StoreUnavailable:
            self._log.warning("rollback_waits", task=task_id)
            return False
        except Exception:
            self._log.exception("rollback_failed", task=task_id)
            return False
        return not any(trial.out for trial in self._trials.of(task_id).values())

    async def _give_up(self, task_id: str) -> None:
        while True:
            try:
                record = await self._store.task(task_id)
            except NotFound:
                record = None  # deleted meanwhile
            try:
                for alias in list(self._trials.of(task_id)):
                    await self._give_up_alias(task_id, record, alias)
            except RevisionConflict:
                continue  # somebody else was faster: look again
            break
        # Where this fails, the next turn tries again; until then requests go past the version as they do now.
        with contextlib.suppress(PromptStoreError):
            await self._refresh(task_id)

    async def _give_up_alias(self, task_id: str, record: TaskRecord | None, name: str) -> None:
        alias = record.aliases.get(name) if record is not None else None
        self._trials.compare(task_id, name, {target.version for target in alias.targets} if alias else ())
        trial = self._trials.of(task_id).get(name)
        if record is not None and alias is not None and trial is not None:
            await self._move(record, alias, trial)

    async def _move(self, record: TaskRecord, alias: AliasRecord, trial: Trial) -> None:
        bad = {
            target.version: trial.out[target.version]
            for target in alias.targets
            if target.version in trial.out
        }
        if not bad:
            return  # nothing is out, or another server, or a person, has moved it
        left = tuple(target for target in alias.targets if target.version not in bad)
        if not left:
            left = await self._before(record, alias.name, trial)
        if not left:
            self._log.error("not_rolled_back", task=record.task_id, alias=alias.name, versions=sorted(bad))
            self._trials.acquit(record.task_id, alias.name)
            return
        if len(left) == 1:
            left = (Target(left[0].version),)
        await self._store.set_alias(
            record.task_id, alias.name, left, expected_revision=alias.revision, actor=ACTOR
        )
        self._trials.compare(record.task_id, alias.name, {target.version for target in left})
        for version, code in bad.items():
            self._metrics.auto_rollbacks.labels(code).inc()
            self._log.error(
                "rolled_back",
                task=record.task_id,
                alias=alias.name,
                version=version,
                code=code,
                to=[target.version for target in left],
            )

    async def _before(self, record: TaskRecord, alias: str, trial: Trial) -> tuple[Target, ...]:
        """What served before, unless it is gone, or a server put the alias where it is: no going to and fro."""
        if trial.fallback is None or trial.fallback not in {version.version for version in record.versions}:
            return ()
        for event in await self._store.history(record.task_id):
            if event.action == "alias" and event.detail.get("alias") == alias:
                return (Target(trial.fallback),) if event.actor != ACTOR else ()
        return ()


def _fault(error: BaseException) -> str | None:
    """The code of an error that may be a version's fault; None for callers', the queue's and the store's."""
    if not isinstance(error, PROMPT_FAULTS):
        return None
    # A version that is not there was deleted a moment ago, and a store that is away lacks every version.
    return None if isinstance(error.__cause__, NotFound | StoreUnavailable) else error.code
