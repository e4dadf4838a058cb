"""Whether what concurrent clients of a store were told fits one order of their calls.

Owns: the search for that order, the laws of the store's one counter, and how a misfit is told. Must not know: any
store, how the calls were made, what failed meanwhile.

The search is Wing and Gong's (Testing and verifying concurrent objects, 1993) as Lowe has it (Testing for
linearizability, 2017): a call takes its place only when one that returned needs it (just in time), and no two ways
to the same place are followed (memoisation; Porcupine does both). Linearizability is local (Herlihy and Wing, 1990):
each task is searched alone. The counter that all tasks share is looked at on its own, for it orders all changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from loadtest.faults.task_model import READS, Answer, Call, State, step
from prompt_store import Event

NEVER: Final = 1 << 62
LIMIT: Final = 200_000  # steps of a search before it is given up
_ACTIONS: Final = {"set_alias": "alias"}  # where an event has another name than its call
_TOLD: Final = 8  # operations told before the misfit


@dataclass(frozen=True, slots=True)
class Operation:
    """A call by one client: `name` is the actor that it gave; times in nanoseconds of one clock.

    Without an answer its outcome is unknown: it took place at any time since, or never.
    """

    name: str
    call: Call
    invoked: int
    returned: int | None
    answer: Answer | None

    @property
    def is_change(self) -> bool:
        """Whether it was answered that this changed something."""
        answer = self.answer
        return answer is not None and not answer.error and answer.created and self.call.action not in READS

    @property
    def end(self) -> int:
        """When it was answered, or never."""
        return NEVER if self.returned is None else self.returned

    def told(self, since: int) -> str:
        """One line for a person."""
        end = "?" if self.returned is None else f"{(self.returned - since) / 1e9:.4f}"
        answer = "no answer" if self.answer is None else self.answer
        return f"{self.name:<7} {(self.invoked - since) / 1e9:.4f} … {end} s  {self.call}: {answer}"


class Verdict(NamedTuple):
    """`fits` is None when the search was given up; `told` says what does not fit."""

    fits: bool | None
    told: str = ""


class _Place(NamedTuple):
    """How far a search has come: before `at` of the returns, having placed `early` (bits) ahead of their returns."""

    at: int
    state: State
    early: int


def linearize(operations: Sequence[Operation], start: State | None = None, *, limit: int = LIMIT) -> Verdict:
    """Look for an order of one task's operations that explains every answer."""
    start = start or State()
    ordered = sorted(operations, key=lambda operation: operation.end)
    returns = [operation for operation in ordered if operation.returned is not None]
    # At a return, whatever was invoked before it and has not returned by then may take its place.
    pending = [
        [n for n, other in enumerate(ordered[at:], at) if other.invoked <= operation.end]
        for at, operation in enumerate(returns)
    ]
    place = farthest = _Place(0, start, 0)
    seen, stack = {place}, [place]
    came: dict[_Place, tuple[_Place, Operation]] = {}
    steps = 0
    while stack:
        place = stack.pop()
        if place.at > farthest.at:
            farthest = place
        if place.at == len(returns):
            return Verdict(True)
        # The call that returns is tried first, and so pushed last.
        for n in reversed(pending[place.at]):
            if place.early >> n & 1:
                continue
            steps += 1
            after = step(place.state, ordered[n].call, ordered[n].answer)
            if isinstance(after, str):
                continue
            new = _past_returns(_Place(place.at, after, place.early | 1 << n), len(returns))
            if new not in seen:
                seen.add(new)
                came[new] = place, ordered[n]
                stack.append(new)
        if steps > limit:
            return Verdict(None, f"given up after {steps} steps")
    order: list[Operation] = []
    back = farthest
    while back in came:
        back, operation = came[back]
        order.append(operation)
    waiting = [ordered[n] for n in pending[farthest.at] if not farthest.early >> n & 1]
    return Verdict(False, _misfit(farthest, order[::-1], waiting, len(returns)))


def _past_returns(place: _Place, returns: int) -> _Place:
    """Past every return whose call has its place already."""
    at, state, early = place
    while at < returns and early >> at & 1:
        early &= ~(1 << at)
        at += 1
    return _Place(at, state, early)


def _misfit(place: _Place, order: Sequence[Operation], waiting: Sequence[Operation], returns: int) -> str:
    since = min(operation.invoked for operation in [*order, *waiting])
    lines = [
        f"no order of task {waiting[0].call.task} fits: {place.at} of {returns} answers were explained, by"
    ]
    if len(order) > _TOLD:
        lines.append(f"  … {len(order) - _TOLD} before")
    lines += [f"  {operation.told(since)}" for operation in order[-_TOLD:]]
    lines += [f"which leads to {place.state}", "then one of these had to come next:"]
    for operation in waiting:
        why = step(place.state, operation.call, operation.answer)
        lines.append(
            f"  {operation.told(since)}  — {why if isinstance(why, str) else 'but then the first never fits'}"
        )
    return "\n".join(lines)


def check_tasks(operations: Iterable[Operation], *, limit: int = LIMIT) -> Mapping[str, Verdict]:
    """`linearize` for each task on its own."""
    tasks: dict[str, list[Operation]] = {}
    for operation in operations:
        tasks.setdefault(operation.call.task, []).append(operation)
    return {task: linearize(group, limit=limit) for task, group in sorted(tasks.items())}


def check_counter(operations: Sequence[Operation], start: int, final: int) -> list[str]:
    """What breaks the counter's laws: each change has its own number, numbers follow time, none is missing."""
    wrong: list[str] = []
    changes = [operation for operation in operations if operation.is_change]
    since = min((operation.invoked for operation in operations), default=0)
    by_revision: dict[int, Operation] = {}
    for change in changes:
        assert change.answer is not None
        revision = change.answer.revision
        other = by_revision.setdefault(revision, change)
        if other is not change:
            wrong.append(
                f"two changes have revision {revision}:\n  {other.told(since)}\n  {change.told(since)}"
            )
        if not start < revision <= final:
            wrong.append(f"outside {start} … {final}, the store's:\n  {change.told(since)}")
    unknown = sum(operation.answer is None for operation in operations)
    if not len(changes) <= final - start <= len(changes) + unknown:
        wrong.append(
            f"the counter rose by {final - start}: {len(changes)} changes were acknowledged, {unknown} are unknown"
        )
    return wrong + _against_time(changes, since)


def _against_time(changes: Sequence[Operation], since: int) -> list[str]:
    """Changes that were acknowledged before another was asked for, and have a higher number."""
    wrong: list[str] = []
    highest, top = 0, None
    returned = sorted(changes, key=lambda change: change.end)
    at = 0
    for change in sorted(changes, key=lambda change: change.invoked):
        while returned[at].end < change.invoked:
            answer = returned[at].answer
            assert answer is not None
            if answer.revision > highest:
                highest, top = answer.revision, returned[at]
            at += 1
        assert change.answer is not None
        if top is not None and highest > change.answer.revision:
            wrong.append(
                f"a later change has a smaller revision:\n  {top.told(since)}\n  {change.told(since)}"
            )
    return wrong


def check_events(
    operations: Sequence[Operation], events: Mapping[str, Sequence[Event]], start: int, final: int
) -> list[str]:
    """What the store's own history tells otherwise than its answers: each change is one event, and nothing else is."""
    wrong: list[str] = []
    told = {event.revision: (task, event) for task, list_ in events.items() for event in list_}
    count = sum(len(list_) for list_ in events.values())
    if sorted(told) != list(range(start + 1, final + 1)) or count != final - start:
        missing = sorted(set(range(start + 1, final + 1)) - set(told))
        wrong.append(f"{count} events for revisions {start + 1} … {final}; without one: {missing}")
    named = {operation.name: operation for operation in operations}
    happened: dict[str, int] = {}
    for number, (task, event) in sorted(told.items()):
        operation = named.get(event.actor)
        if event.actor in happened:
            wrong.append(f"{event.actor} happened twice: at {happened[event.actor]} and at {number}")
        happened[event.actor] = number
        if operation is None or not _is_event_of(operation, task, event):
            wrong.append(
                f"the event {event.action} by {event.actor!r} at {number} is of no such call on {task}"
            )
    for operation in operations:
        if operation.is_change and operation.name not in happened:
            wrong.append(f"acknowledged, and not in the history: {operation.told(operation.invoked)}")
    return wrong


def _is_event_of(operation: Operation, task: str, event: Event) -> bool:
    call, answer = operation.call, operation.answer
    same = (call.task, _ACTIONS.get(call.action, call.action)) == (task, event.action)
    return same and (answer is None or (operation.is_change and answer.revision == event.revision))


def resolved(operations: Iterable[Operation], events: Mapping[str, Sequence[Event]]) -> list[Operation]:
    """The operations, with what became of the unknown ones as the store's history tells it.

    What never happened is left out; what did has its revision, but still no time of return.
    """
    numbers = {event.actor: event.revision for list_ in events.values() for event in list_}
    known = []
    for operation in operations:
        if operation.answer is not None:
            known.append(operation)
        elif (revision := numbers.get(operation.name)) is not None:
            known.append(replace(operation, answer=Answer(revision=revision, alias_revision=revision)))
    return known
