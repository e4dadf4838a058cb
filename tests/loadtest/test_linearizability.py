"""The checker takes every history that some order explains, and no other; broken stores do not pass."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from loadtest.faults.linearizability import (
    Operation,
    check_counter,
    check_events,
    linearize,
    resolved,
)
from loadtest.faults.task_model import READS, Answer, Call, State, step
from prompt_store import AliasRecord, Event, Target, TaskRecord, VersionRecord

A, B = "a" * 64, "b" * 64


def at(begin: int, end: int | None, call: Call, answer: Answer | None, name: str = "") -> Operation:
    return Operation(name or f"w-{begin}", call, begin, end, answer)


def publish(
    begin: int, end: int | None, version: str, revision: int | None, created: bool = True
) -> Operation:
    answer = None if revision is None else Answer(revision=revision, created=created)
    return at(begin, end, Call("publish", "t", version=version), answer)


def move(
    begin: int, end: int | None, version: str, expected: int | None, answer: int | Answer | None
) -> Operation:
    call = Call("set_alias", "t", alias="current", targets=(Target(version),), expected=expected)
    if isinstance(answer, int):
        answer = Answer(revision=answer, alias_revision=answer)
    return at(begin, end, call, answer)


def conflict(current: int) -> Answer:
    return Answer("revision_conflict", current=current)


def record(versions: Sequence[str], alias: tuple[str, int] | None, revision: int) -> TaskRecord:
    aliases = {"current": AliasRecord("current", (Target(alias[0]),), alias[1])} if alias else {}
    return TaskRecord("t", aliases, tuple(VersionRecord(v, 1, 0.0, "", 2) for v in versions), revision)


def read(
    begin: int, end: int, versions: Sequence[str], alias: tuple[str, int] | None, revision: int
) -> Operation:
    return at(begin, end, Call("task", "t"), Answer(record=record(versions, alias, revision)))


BOTH = [publish(0, 1, A, 1), publish(2, 3, B, 2)]
GOOD = {
    "one after another": [*BOTH, move(4, 5, A, 0, 3), read(6, 7, [B, A], (A, 3), 3)],
    "one of two wins": [*BOTH, move(4, 8, A, 0, 3), move(5, 9, B, 0, conflict(3))],
    "the first of two answers last": [*BOTH, move(4, 9, A, 0, 3), move(5, 6, B, 3, 4)],
    "a read meets a write: before": [*BOTH, move(4, 9, A, 0, 3), read(5, 6, [B, A], None, 2)],
    "a read meets a write: after": [*BOTH, move(4, 9, A, 0, 3), read(5, 6, [B, A], (A, 3), 3)],
    "unknown, and never was": [*BOTH, move(4, None, A, 0, None), move(6, 7, B, 0, 3)],
    "unknown, and a conflict names it": [*BOTH, move(4, None, A, 0, None), move(6, 7, B, 0, conflict(5))],
    "unknown, and the next one builds on it": [*BOTH, move(4, None, A, 0, None), move(6, 7, B, 5, 6)],
    "unknown, and seen much later": [
        *BOTH,
        move(4, None, A, 0, None),
        read(6, 7, [B, A], None, 2),
        read(8, 9, [B, A], (A, 4), 4),
    ],
    "two unknown ones, in either order": [
        *BOTH,
        move(4, None, A, None, None),
        move(5, None, B, None, None),
        read(6, 7, [B, A], (B, 3), 3),
        read(8, 9, [B, A], (A, 4), 4),
    ],
    "deleted and back": [
        *BOTH,
        at(4, 5, Call("delete_task", "t"), Answer(revision=3)),
        at(6, 7, Call("task", "t"), Answer("unknown_task")),
        publish(8, 9, A, 4),
        read(10, 11, [A], None, 4),
    ],
    "of two errors, either": [*BOTH, move(4, 5, "c" * 64, 7, Answer("unknown_version"))],
    "in use": [
        *BOTH,
        move(4, 5, A, 0, 3),
        at(6, 7, Call("delete_version", "t", version=A), Answer("version_in_use")),
        at(6, 7, Call("delete_task", "t"), Answer("version_in_use")),
        at(8, 9, Call("delete_task", "t", force=True), Answer(revision=4)),
    ],
}
BAD = {
    "a stale read": [*BOTH, move(4, 5, A, 0, 3), read(6, 7, [B, A], None, 2)],
    "two winners": [*BOTH, move(4, 8, A, 0, 3), move(5, 9, B, 0, 4)],
    "no winner": [*BOTH, move(4, 8, A, 0, conflict(4)), move(5, 9, B, 0, conflict(3))],
    "a lost update": [*BOTH, move(4, 5, A, 0, 3), move(6, 7, B, None, 4), read(8, 9, [B, A], (A, 3), 4)],
    "acknowledged, and gone": [*BOTH, publish(4, 5, "c" * 64, 3), read(6, 7, [B, A], None, 2)],
    "a revision used twice": [*BOTH, move(4, 5, A, 0, 3), move(6, 7, B, 3, 3)],
    "a revision goes back": [*BOTH, move(4, 5, A, 0, 9), move(6, 7, B, 9, 8)],
    "a conflict with what was expected": [*BOTH, move(4, 5, A, 0, conflict(0))],
    "seen, then not": [
        *BOTH,
        move(4, 11, A, 0, 3),
        read(5, 6, [B, A], (A, 3), 3),
        read(7, 8, [B, A], None, 2),
    ],
    "unknown, seen, then not": [
        *BOTH,
        move(4, None, A, 0, None),
        read(5, 6, [B, A], (A, 3), 3),
        read(7, 8, [B, A], None, 2),
    ],
    "unknown, before it was asked": [*BOTH, read(4, 5, [B, A], (A, 3), 3), move(6, None, A, 0, None)],
    "unknown, and two revisions": [
        *BOTH,
        move(4, None, A, 0, None),
        move(6, 7, B, 0, conflict(3)),
        move(8, 9, B, 0, conflict(4)),
    ],
    "unknown, after its successor": [*BOTH, move(4, None, A, 0, None), move(6, 7, B, 5, 4)],
    "created by its own second attempt": [publish(0, 1, A, 1, created=False), read(2, 3, [A], None, 1)],
    "oldest first": [*BOTH, read(4, 5, [A, B], None, 2)],
    "an alias outlives its task": [
        *BOTH,
        move(4, 5, A, 0, 3),
        at(6, 7, Call("delete_task", "t", force=True), Answer(revision=4)),
        publish(8, 9, A, 5),
        read(10, 11, [A], (A, 3), 5),
    ],
    "deleted while in use": [
        *BOTH,
        move(4, 5, A, 0, 3),
        at(6, 7, Call("delete_version", "t", version=A), Answer(revision=4)),
    ],
    "half of a change": [*BOTH, move(4, 9, A, 0, 3), read(5, 6, [B, A], (A, 3), 2)],
    "an error of nobody's": [*BOTH, at(4, 5, Call("task", "t"), Answer("ConnectionError (reset)"))],
    "lost bytes": [*BOTH, at(4, 5, Call("get", "t", version=A), Answer("corrupt_version"))],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_some_order_explains_fits(name: str) -> None:
    assert linearize(GOOD[name]) == (True, "")


@pytest.mark.parametrize("name", BAD)
def test_what_no_order_explains_does_not(name: str) -> None:
    assert linearize(BAD[name]).fits is False


def test_a_misfit_is_told_for_a_person() -> None:
    told = linearize(BAD["two winners"]).told
    assert told.splitlines() == [
        "no order of task t fits: 3 of 4 answers were explained, by",
        "  w-0     0.0000 … 0.0000 s  publish aaaaaa: revision 1",
        "  w-2     0.0000 … 0.0000 s  publish bbbbbb: revision 2",
        "  w-4     0.0000 … 0.0000 s  set_alias current → aaaaaa×1 if at 0: revision 3",
        "which leads to [bbbbbb aaaaaa] current → aaaaaa×1 at 3, last change 3",
        "then one of these had to come next:",
        "  w-5     0.0000 … 0.0000 s  set_alias current → bbbbbb×1 if at 0: revision 4"
        "  — current is at 3, not at 0",
    ]


def test_a_search_that_takes_too_long_is_given_up() -> None:
    unknown = [move(4 + n, None, A if n % 2 else B, None, None) for n in range(30)]
    history = [*BOTH, *unknown, read(90, 91, [A], None, 2)]
    assert linearize(history, limit=2000).fits is None


def test_the_search_agrees_with_trying_every_order() -> None:
    """Small random histories, most with one answer altered: the same verdict as from all orders."""
    rng, fits = random.Random(7), 0
    for _ in range(1500):
        history = _altered(_random_history(rng), rng)
        verdict = linearize(history).fits
        assert verdict is _by_every_order(history), "\n".join(operation.told(0) for operation in history)
        fits += bool(verdict)
    assert 300 < fits < 1200


def _random_history(rng: random.Random) -> list[Operation]:
    """Calls of clients, each carried out at one moment within its time; some of the answers lost."""
    state, revision, history = State(), 0, []
    for moment in range(10, 10 + 10 * rng.randint(3, 6), 10):
        call = _random_call(rng, revision)
        after: State | str = ""
        for answer in _answers(call, state, revision):
            after = step(state, call, answer)
            if not isinstance(after, str):
                break
        assert not isinstance(after, str)
        begin, end = moment - rng.randint(1, 30), moment + rng.randint(1, 30)
        if not answer.error and answer.created and call.action not in READS:
            revision += 1
        state = after
        lost = call.action not in READS and rng.random() < 0.3
        history.append(at(begin, None, call, None) if lost else at(begin, end, call, answer))
    return history


def _random_call(rng: random.Random, revision: int) -> Call:
    version, expected = rng.choice((A, B)), rng.choice((None, 0, revision, max(0, revision - 1)))
    return rng.choice(
        (
            Call("publish", "t", version=version),
            Call("publish", "t", version=version),
            Call("set_alias", "t", alias="current", targets=(Target(version),), expected=expected),
            Call("set_alias", "t", alias="current", targets=(Target(version),), expected=expected),
            Call("delete_alias", "t", alias="current", expected=expected),
            Call("delete_version", "t", version=version),
            Call("delete_task", "t", force=True),
            Call("task", "t"),
            Call("task", "t"),
        )
    )


def _answers(call: Call, state: State, revision: int) -> list[Answer]:
    alias = state.alias("current")
    seen = (alias.targets[0].version, alias.revision.low) if alias else None
    return [
        Answer("unknown_task"),
        Answer("revision_conflict", current=alias.revision.low if alias else 0),
        Answer("unknown_version"),
        Answer("unknown_alias"),
        Answer("version_in_use"),
        Answer(record=record(state.versions, seen, state.last.low))
        if call.action == "task"
        else Answer(revision=revision, created=False)
        if call.action == "publish" and call.version in state.versions
        else Answer(revision=revision + 1, alias_revision=revision + 1),
    ]


def _altered(history: list[Operation], rng: random.Random) -> list[Operation]:
    """The history with one number of one answer changed, if it has an answer."""
    answered = [n for n, operation in enumerate(history) if operation.answer is not None]
    if not answered or rng.random() < 0.2:
        return history
    n = rng.choice(answered)
    answer = history[n].answer
    assert answer is not None
    wrong = rng.choice((-1, 1))
    if answer.record is not None:
        shown = answer.record
        answer = replace(answer, record=replace(shown, revision=shown.revision + wrong))
    elif answer.error == "revision_conflict":
        answer = replace(answer, current=max(0, answer.current + wrong))
    elif answer.error:
        answer = Answer(rng.choice(("unknown_task", "unknown_version", "version_in_use")))
    elif rng.random() < 0.2:
        answer = replace(answer, created=not answer.created)
    else:
        number = answer.revision + wrong
        answer = replace(answer, revision=number, alias_revision=number)
    return [*history[:n], replace(history[n], answer=answer), *history[n + 1 :]]


def _by_every_order(history: Sequence[Operation]) -> bool:
    certain = [operation for operation in history if operation.answer is not None]
    unknown = [operation for operation in history if operation.answer is None]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*certain, *chosen]):
                if _in_time(order) and _explains(order):
                    return True
    return False


def _in_time(order: Sequence[Operation]) -> bool:
    return all(one.invoked <= other.end for one, other in itertools.combinations(order, 2))


def _explains(order: Sequence[Operation]) -> bool:
    state: State | str = State()
    for operation in order:
        assert isinstance(state, State)
        state = step(state, operation.call, operation.answer)
        if isinstance(state, str):
            return False
    return True


def test_the_counter_gives_each_change_its_own_number_in_the_order_of_time() -> None:
    good = [publish(0, 1, A, 1), publish(2, 9, B, 3), move(3, 8, A, 0, 2), move(10, None, B, None, None)]
    assert check_counter(good, 0, 3) == []
    assert check_counter(good, 0, 4) == []
    (lost,) = check_counter(good, 0, 5)
    assert "rose by 5: 3 changes were acknowledged, 1 are unknown" in lost
    assert any("rose by 2" in wrong for wrong in check_counter(good, 0, 2))
    (twice,) = check_counter([publish(0, 1, A, 1), publish(0, 1, B, 1), publish(2, 3, A, 2)], 0, 3)
    assert "two changes have revision 1" in twice
    (later,) = check_counter([publish(0, 1, A, 2), publish(2, 3, B, 1)], 0, 2)
    assert "a later change has a smaller revision" in later


def event(revision: int, actor: str, action: Any) -> Event:
    return Event(revision, 0.0, actor, action, {})


def test_the_stores_history_has_each_change_once_and_nothing_else() -> None:
    history = [
        publish(0, 1, A, 1),
        move(2, 3, A, 0, 2),
        move(4, 5, A, 0, conflict(2)),
        move(6, None, B, 2, None),
    ]
    events = [event(1, "w-0", "publish"), event(2, "w-2", "alias")]
    assert check_events(history, {"t": events}, 0, 2) == []
    assert check_events(history, {"t": [*events, event(3, "w-6", "alias")]}, 0, 3) == []
    for bad, said in (
        (events[:1], "acknowledged, and not in the history: w-2"),
        ([events[0], event(2, "w-2", "delete_alias")], "no such call"),
        ([*events, event(3, "w-4", "alias")], "by 'w-4' at 3 is of no such call"),
        ([*events, event(3, "w-6", "alias"), event(4, "w-6", "alias")], "w-6 happened twice: at 3 and at 4"),
        ([*events, event(4, "w-6", "alias")], "without one: [3]"),
    ):
        assert any(said in wrong for wrong in check_events(history, {"t": bad}, 0, bad[-1].revision))


def test_the_stores_history_resolves_what_was_unknown() -> None:
    history = [*BOTH, move(4, None, A, 0, None), move(6, None, B, 0, None), read(8, 9, [B, A], (A, 3), 3)]
    known = resolved(history, {"t": [event(3, "w-6", "alias")]})
    assert [operation.name for operation in known] == ["w-0", "w-2", "w-6", "w-8"]
    assert linearize(history).fits
    assert linearize(known).fits is False  # it was the other one, and that leads to B
