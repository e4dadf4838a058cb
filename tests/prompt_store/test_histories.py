"""Writers and followers of one store under faults: the order of their calls fits, and nothing is lost.

The long form is `python -m loadtest.faults histories`.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest

from loadtest.faults.histories import WRITERS, make_history
from loadtest.faults.history_replicas import Sight, Window, out_of_order, staleness, torn
from loadtest.faults.history_server import Told, backwards, server_staleness
from loadtest.faults.history_verdict import History
from loadtest.faults.history_writers import make_prompts
from loadtest.faults.linearizability import Operation
from loadtest.faults.task_model import Answer, Call
from prompt_store import AliasRecord, Event, Revision, Target, TaskPage, TaskRecord


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    make_prompts()
    with ThreadPoolExecutor(WRITERS) as threads:
        yield threads


def said(history: History) -> str:
    return "\n".join(history.wrong)


@pytest.mark.parametrize(
    ("store", "fault"),
    [
        ("file", "none"),
        ("file", "lock"),
        ("file", "kill -9"),
        *(("redis", f) for f in ("kill -9", "lost replies", "reset", "pause")),
    ],
)
async def test_a_history_under_faults_fits(threads: ThreadPoolExecutor, store: str, fault: str) -> None:
    for seconds in (0.8, 4.0, 20.0):  # a machine that stands still gets nothing written in a short one
        history = await make_history(store, 1, threads, fault=fault, seconds=seconds)
        assert not history.wrong, said(history)  # how late the replicas were is the long form's to judge
        # The fault that does nothing may do it never.
        if history.count("ok") and history.sights and (history.windows or fault == "none"):
            return
    pytest.fail(f"it shows nothing: {history.thin}")


async def test_a_server_process_follows_a_history(threads: ThreadPoolExecutor) -> None:
    for seconds in (0.8, 4.0, 20.0):
        history = await make_history("redis", 2, threads, fault="reset", seconds=seconds, server=True)
        assert not history.wrong, said(history)
        if history.answers:
            return
    pytest.fail("the server answered nothing")


def test_a_history_that_shows_too_little_does_not_pass() -> None:
    thin = History(1, "none", answers=0)
    assert len(thin.thin) == 4
    assert thin.failures


ANSWERED = Operation("w", Call("publish", "t", version="a"), int(9e9), int(10e9), Answer(revision=5))


def sight(at: float, revision: int | None, after: int = 0, alias: int = 0) -> Sight:
    aliases = {"current": AliasRecord("current", (Target("a"),), alias)} if alias else {}
    record = None if revision is None else TaskRecord("t", aliases, (), revision)
    return Sight(at, "t", record, after)


def test_what_a_replica_sees_may_skip_and_repeat_but_never_goes_back() -> None:
    good = [sight(1, 3), sight(2, 3), sight(3, 7), sight(4, None, 8), sight(5, 9)]
    assert out_of_order("r", good) == []
    for bad in (
        [sight(1, 3), sight(2, 2)],
        [sight(1, 3), sight(2, 3, alias=2)],
        [sight(1, 3), sight(2, None), sight(3, 3)],
        [sight(1, 7), sight(2, None), sight(3, 6)],
    ):
        assert len(out_of_order("r", bad)) == 1


def test_a_page_shows_every_task_as_it_stood_at_one_revision() -> None:
    def event(revision: int, action: Literal["publish", "delete_task"]) -> Event:
        return Event(revision, 0.0, "w", action, {})

    def page(number: int, **revisions: int) -> TaskPage:
        records = tuple(TaskRecord(task, {}, (), revision) for task, revision in revisions.items())
        return TaskPage(records, None, Revision("e", number))

    events = {
        "t": [event(5, "publish"), event(1, "publish")],
        "u": [event(3, "delete_task"), event(2, "publish")],
    }
    good = [page(0), page(1, t=1), page(2, t=1, u=2), page(3, t=1), page(4, t=1), page(5, t=5)]
    assert torn("r", good, events) == []
    for bad in (page(2, t=1), page(4, t=5), page(5, t=1), page(3, t=1, u=2), page(5, t=5, x=4)):
        assert len(torn("r", [bad], events)) == 1


def test_what_a_server_names_never_goes_back_and_is_in_time() -> None:
    good = [Told(9, "e", 3), Told(10.5, "e", 4), Told(11, "e", 4), Told(11.5, "e", 6)]
    assert backwards(good) == []
    assert server_staleness(good, ANSWERED, []) == 1.5
    assert server_staleness(good[:3], ANSWERED, []) is None
    assert len(backwards([*good, Told(12, "e", 5)])) == 1
    assert len(backwards([*good, Told(12, "f", 7)])) == 1


@pytest.mark.parametrize(
    ("sights", "faults", "stale"),
    [
        ([sight(9.5, 5)], [], 0.0),  # before its writer was told
        ([sight(10.5, 4), sight(11.5, 6)], [], 1.5),
        ([sight(10.5, 4)], [], None),
        ([sight(11, None, 5)], [], 1.0),
        ([sight(11, None, 4)], [], None),  # gone as of before the write
        ([sight(13, 5)], [Window(9.5, 12)], 1.0),
        ([sight(13, 5)], [Window(10.5, 11), Window(11.5, 12.5)], 0.5),
        ([sight(13, 5)], [Window(10.5, 14)], 0.0),
        ([sight(13, 5)], [Window(1, 2), Window(14, 15)], 3.0),
    ],
)
def test_staleness_counts_from_the_answer_or_from_the_end_of_a_fault(
    sights: list[Sight], faults: list[Window], stale: float | None
) -> None:
    for order in itertools.permutations(faults):
        assert staleness(sights, ANSWERED, order) == stale
