"""What one history came to, and whether that is as it must be.

Owns: what is held against which law, and how much there must be of it. Must not know: how a history is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from loadtest.faults.history_replicas import Replica, Window, out_of_order, staleness, torn
from loadtest.faults.history_server import NAME, ServerReplica, backwards, server_staleness
from loadtest.faults.history_writers import TASKS, read_all
from loadtest.faults.linearizability import (
    LIMIT,
    Operation,
    check_counter,
    check_events,
    check_tasks,
    resolved,
)
from prompt_store import Event, PromptStore, UnknownTask

STALE_SECONDS: Final = 2.0
_LEAST: Final = {"changes": 5, "faults": 1, "sights": 20, "answers of the server": 20}


@dataclass
class History:
    """What happened in one history, and what is wrong with it."""

    seed: int
    fault: str
    operations: list[Operation] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)  # what a replica saw later than it should
    stale: list[float] = field(default_factory=list)
    raw_stale: list[float] = field(
        default_factory=list
    )  # the same from the acknowledgement on, whatever the fault
    sights: int = 0
    windows: int = 0  # times that the store was broken, or left alone where the fault is `none`
    answers: int | None = None  # of a server process that followed; None: there was none
    undecided: int = 0  # tasks whose search was given up before the unknown outcomes were looked up
    events: dict[str, Sequence[Event]] = field(default_factory=dict)  # what the store's own history tells

    def count(self, kind: str) -> int:
        """How many operations were `ok`, `refused` or `unknown`."""
        return sum(kind == _kind(operation) for operation in self.operations)

    @property
    def thin(self) -> list[str]:
        """What there was too little of for the history to say anything."""
        seen = {
            "changes": sum(operation.is_change for operation in self.operations),
            "faults": self.windows,
            "sights": self.sights,
            "answers of the server": _LEAST["answers of the server"]
            if self.answers is None
            else self.answers,
        }
        return [
            f"{seen[what]} {what}, {least} are needed" for what, least in _LEAST.items() if seen[what] < least
        ]

    @property
    def failures(self) -> list[str]:
        """Everything for which it does not pass."""
        return [*self.wrong, *self.late, *self.thin]


def _kind(operation: Operation) -> str:
    if operation.answer is None:
        return "unknown"
    return "refused" if operation.answer.error else "ok"


async def check(history: History, sure: PromptStore, start: int) -> None:
    """Read the quiet store out, and check what the writers were told against it and against each other."""
    events = history.events
    while True:
        before = await sure.revision()
        reads = await read_all(sure, "end", history.operations)
        for task in TASKS:
            with suppress(UnknownTask):
                events[task] = await sure.history(task, limit=1000)
        if before == await sure.revision():  # else a call that nobody waits for any more took place after all
            break
    history.operations += reads
    final = before.number
    epochs = {o.answer.epoch for o in history.operations if o.answer is not None and o.answer.epoch}
    if not epochs <= {before.epoch}:
        history.wrong.append(f"history was lost: its epochs were {sorted(epochs)}, it ends in {before.epoch}")
    history.wrong += check_counter(history.operations, start, final)
    history.wrong += check_events(history.operations, events, start, final)
    # First by the answers alone; then also with what the store's history says of the unknown outcomes, which is
    # stricter, and decides where too many of them made the first search too long.
    for verdict in check_tasks(history.operations, limit=LIMIT).values():
        history.undecided += verdict.fits is None
        if verdict.fits is False:
            history.wrong.append(verdict.told)
    if not history.wrong:
        known = check_tasks(resolved(history.operations, events)).values()
        history.wrong += [verdict.told for verdict in known if not verdict.fits]


def check_replica(history: History, replica: Replica, windows: Sequence[Window]) -> None:
    """What a replica saw, against the store's own history and the writers' answers."""
    history.wrong += replica.wrong
    history.wrong += out_of_order(replica.name, replica.sights)
    history.wrong += torn(replica.name, replica.pages, history.events)
    history.sights += len(replica.sights) + len(replica.pages)
    _check_staleness(
        history, replica.name, lambda write, faults: staleness(replica.sights, write, faults), windows
    )


def check_server(history: History, server: ServerReplica, windows: Sequence[Window]) -> None:
    """What a server process said, against the writers' answers."""
    history.answers = len(server.told)
    history.wrong += server.wrong + backwards(server.told)
    _check_staleness(
        history, NAME, lambda write, faults: server_staleness(server.told, write, faults), windows
    )


def _check_staleness(
    history: History,
    name: str,
    seen: Callable[[Operation, Sequence[Window]], float | None],
    windows: Sequence[Window],
) -> None:
    if history.fault == "none":  # nothing was broken: nobody may lag for that
        windows = ()
    for write in history.operations:
        if not write.is_change:
            continue
        stale, raw = seen(write, windows), seen(write, ())
        if stale is None or raw is None:
            history.wrong.append(f"{name} never saw {write.told(write.invoked)}")
            continue
        history.stale.append(stale)
        history.raw_stale.append(raw)
        if stale > STALE_SECONDS:
            history.late.append(f"{name} saw after {stale:.2f} s: {write.told(write.invoked)}")
