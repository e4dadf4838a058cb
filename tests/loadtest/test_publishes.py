from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from loadtest.faults import publishes
from loadtest.faults.move_ledger import MoveLedger
from loadtest.faults.movers import MoveReport
from loadtest.faults.outcome import Outcome
from loadtest.faults.spread import Spread, SpreadReport
from loadtest.faults.steady_load import LoadReport
from loadtest.faults.told_answers import Told

NAMES = ("one", "two")


def outcome(
    *flags: str,
    made: int = 3,
    seconds: tuple[float, ...] = (0.1,),
    wrong_on_the_way: tuple[str, ...] = (),
    wrong_at_last: tuple[str, ...] = (),
    asked_at_last: int = 4,
    stale: tuple[str, ...] = (),
    sent_twice: int = 0,
    evicted: int = 5,
    **load: Any,
) -> Outcome:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    publishes.add_options(parser)
    options = parser.parse_args(["--moves=3", "--replicas=2", "--tasks=2", *flags])
    report = LoadReport(seconds=10.0, offered=100, answered=100, by_replica=Counter(one=50, two=50))
    for name, value in load.items():
        setattr(report, name, value)
    return publishes._outcome(
        options,
        report,
        MoveReport(made=Counter(publish=made), seconds={"publish": [0.1] * made}),
        SpreadReport(seconds=list(seconds), wrong=list(wrong_on_the_way)),
        SpreadReport(wrong=list(wrong_at_last), asked=asked_at_last),
        list(stale),
        10.0,
        {name: {"retries": sent_twice, "redispatches": 0} for name in NAMES},
        dict.fromkeys(NAMES, evicted),
    )


def test_all_that_was_asked_for_was_done() -> None:
    assert outcome().passed


@pytest.mark.parametrize(
    "less",
    [
        {"made": 2},
        {"seconds": ()},
        {"seconds": (3.0,)},
        {"wrong_on_the_way": ("mixed",)},
        {"wrong_at_last": ("gone back",)},
        {"asked_at_last": 3},
        {"stale": ("one: task 1",)},
        {"sent_twice": 1},
        {"evicted": 0},
        {"answered": 98},
        {"failed": 1},
        {"wrong": 1},
        {"by_replica": Counter(one=100)},
    ],
)
def test_less_than_that_has_not_passed(less: dict[str, Any]) -> None:
    assert not outcome(**less).passed


def test_no_moves_are_none() -> None:
    assert not outcome("--moves=0", made=0).passed


def test_what_was_wrong_after_the_last_move_is_counted_and_told() -> None:
    one = outcome(wrong_at_last=("gone back: two",))
    assert {"figure": "wrong answers", "value": 1} in one.rows
    assert "gone back: two" in one.facts["examples"]


class Server:
    """Answers with what `say` gives for the n-th question."""

    name = "one"

    def __init__(self, say: Callable[[int], tuple[int, str]]) -> None:
        self.asked, self._say = 0, say
        self.status, self._version = 0, ""

    def connection(self) -> Server:
        return self

    getresponse = connection

    def request(self, *_: object) -> None:
        self.status, self._version = self._say(self.asked)
        self.asked += 1

    def read(self) -> bytes:
        return json.dumps(self._version).encode()

    def close(self) -> None:
        pass


class Tasks:
    """Reads those answers."""

    def body(self, task: int, number: int) -> bytes:
        return b""

    def read(self, task: int, number: int, body: bytes) -> Told:
        return Told(task, number, json.loads(body))


def waited(
    say: Callable[[int], tuple[int, str]], version: str, since: float, **how: float
) -> tuple[list[str], SpreadReport, Server]:
    ledger, report, server = MoveLedger(), SpreadReport(), Server(say)
    ledger.begin(0, "old")
    ledger.begin(0, "new")
    spread = Spread([server], Tasks(), ledger, report)  # type: ignore[list-item, arg-type]
    return spread.wait(0, version, since, **how), report, server


def test_a_server_is_asked_until_it_answers_with_the_version() -> None:
    late, report, server = waited(lambda n: (200, "new") if n == 3 else (200, "old"), "new", time.monotonic())
    assert (late, report.wrong, server.asked) == ([], [], 4)


def test_a_wrong_answer_is_told_and_ends_no_wait() -> None:
    late, report, server = waited(lambda _: (200, "never"), "never", 0.0, patience=0.0)
    assert late == ["one"]
    assert report.wrong[0].startswith("never current")
    assert report.asked == server.asked == 1


def test_a_refusal_is_told() -> None:
    late, report, _ = waited(lambda n: (200, "new") if n else (503, ""), "new", 0.0, patience=1e12)
    assert late == []
    assert report.wrong[0].startswith("status 503 from one")
