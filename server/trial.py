"""Versions on trial: those of a split alias, and one that an alias was just moved to.

Owns: which versions these are, what is held against each, and where requests go instead. Must not know: the store,
HTTP, how failures are found. A trial lives as long as its alias leads to its versions: an alias that is moved, by
whomever, starts afresh with the versions that are new to it. Changed on the event loop only.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from prompt_store import Target
from server.catalogue import ServedTask

# Seconds for which the version before stands ready after an alias was moved wholly to another one.
PROBATION: Final = 600.0


@dataclass(slots=True)
class Trial:
    """One alias's. `fallback` is what served before, until the time `until`; a split has none and no end."""

    targets: tuple[Target, ...]
    fallback: str | None = None
    until: float = math.inf
    faults: Counter[str] = field(default_factory=Counter)
    out: dict[str, str] = field(default_factory=dict)  # version → the code of what it did
    gone: set[str] = field(default_factory=set)  # those of `out` that the store does not lead to any more
    desperate: bool = False  # it was logged that no version is healthy

    @property
    def over(self) -> bool:
        """Whether the version has served for long enough."""
        return time.monotonic() > self.until

    def concerns(self, version: str) -> bool:
        """Whether a failure of `version` means anything here."""
        return version not in self.out and not self.over and version in {t.version for t in self.targets}

    def others(self, version: str) -> list[str]:
        """What could serve in its place."""
        known = [target.version for target in self.targets]
        if self.fallback is not None:
            known.append(self.fallback)
        return [other for other in known if other != version and other not in self.out]

    def left(self) -> tuple[Target, ...] | None:
        """Where requests go while something is out; None while nothing is."""
        if not self.out:
            return None
        left = tuple(target for target in self.targets if target.version not in self.out)
        if not left and self.fallback is not None:
            left = (Target(self.fallback),)
        return left or None


class Trials:
    """Trials by task and alias. `detour(task_id, alias, targets)` sends an alias's requests elsewhere."""

    def __init__(self, detour: Callable[[str, str, tuple[Target, ...] | None], None]) -> None:
        self._detour = detour
        self._tasks: dict[str, dict[str, Trial]] = {}
        self._room = 1000  # tasks, until those whose trials are over are thrown away

    def of(self, task_id: str) -> Mapping[str, Trial]:
        """The task's trials by alias."""
        return self._tasks.get(task_id, {})

    def exclude(self, task_id: str, alias: str, version: str, code: str) -> None:
        """Use the version no longer for this alias."""
        trial = self._tasks[task_id][alias]
        trial.out[version] = code
        self._detour(task_id, alias, trial.left())

    def compare(self, task_id: str, alias: str, led: Collection[str]) -> None:
        """Hear which versions the alias leads to in the store, be it later than what `follow` heard or not.

        What is out, was gone from there and is there again, was put back by somebody: it starts afresh. `follow` need
        not hear of that, where the alias was moved and moved back between two looks at it.
        """
        trial = self.of(task_id).get(alias)
        if trial is None or not trial.out:
            return
        for version in trial.gone.intersection(led):
            del trial.out[version], trial.faults[version]
        trial.gone = trial.out.keys() - set(led)
        self._detour(task_id, alias, trial.left())

    def acquit(self, task_id: str, alias: str) -> None:
        """Use all versions again, and hold nothing against them any more."""
        self._drop(task_id, alias)

    def follow(self, task_id: str, before: ServedTask | None, now: ServedTask | None) -> None:
        """Hear that a task has changed."""
        aliases = now.aliases if now is not None else {}
        for alias in [alias for alias in self.of(task_id) if alias not in aliases]:
            self._drop(task_id, alias)
        if now is None:
            return
        for alias, targets in aliases.items():
            served = before.aliases.get(alias, ()) if before is not None else ()
            if served == targets:
                continue
            old = self.of(task_id).get(alias)
            new = _split(targets, old) if len(targets) > 1 else _moved(targets, served, old, now.versions)
            if new is None:
                self._drop(task_id, alias)
            else:
                self._make_room()
                self._tasks.setdefault(task_id, {})[alias] = new
                self._detour(task_id, alias, new.left())

    def _drop(self, task_id: str, alias: str) -> None:
        trials = self._tasks.get(task_id, {})
        if trials.pop(alias, None) is not None:
            self._detour(task_id, alias, None)
            if not trials:
                del self._tasks[task_id]

    def _make_room(self) -> None:
        if len(self._tasks) < self._room:
            return
        for task_id, trials in list(self._tasks.items()):
            for alias in [alias for alias, trial in trials.items() if trial.over and not trial.out]:
                self._drop(task_id, alias)
        self._room = 1000 + 2 * len(self._tasks)


def _split(targets: tuple[Target, ...], old: Trial | None) -> Trial:
    """The trial of a split. Other weights change nothing for the versions that stay."""
    trial = Trial(targets)
    if old is not None:
        stay = {target.version for target in targets} - old.gone  # these were put back
        trial.faults.update({version: count for version, count in old.faults.items() if version in stay})
        trial.out.update({version: code for version, code in old.out.items() if version in stay})
    return trial


def _moved(
    targets: tuple[Target, ...], served: tuple[Target, ...], old: Trial | None, known: Collection[str]
) -> Trial | None:
    """The trial of an alias that leads to one version now; None where nothing is known to go back to."""
    if old is not None and old.fallback is not None and not old.over:
        before = old.fallback  # what served in between had not proved itself
    else:
        sound = [target for target in served if old is None or target.version not in old.out]
        before = max(sound, key=lambda target: target.weight).version if sound else ""
    if before not in known or before == targets[0].version:
        return None
    return Trial(targets, before, time.monotonic() + PROBATION)
