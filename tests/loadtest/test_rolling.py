from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import pytest

from loadtest.faults import rolling
from loadtest.faults.steady_load import LoadReport

NAMES = ("one", "two")


def passed(
    *flags: str,
    restarts: int = 2,
    exit_code: int = 0,
    at_work: tuple[int, int] = (0, 3),
    counts: dict[str, int] | None = None,
    **load: Any,
) -> bool:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    rolling.add_options(parser)
    options = parser.parse_args(["--rounds=2", "--replicas=2", *flags])
    report = LoadReport(seconds=10.0, offered=100, answered=100, by_replica=Counter(one=50, two=50))
    for name, value in load.items():
        setattr(report, name, value)
    one = rolling._Restart(exit_code, *at_work, 0.2, 1.4, 1.0, 0.0, 10**8)
    none = {"retries": 0, "redispatches": 0}
    return rolling._outcome(
        options,
        report,
        {name: [one] * (restarts if name == "two" else 2) for name in NAMES},
        {"one": none, "two": counts or none},
    ).passed


def test_all_that_was_asked_for_was_done() -> None:
    assert passed()
    assert passed(answered=99)


@pytest.mark.parametrize(
    "less",
    [
        {"restarts": 1},
        {"restarts": 3},
        {"exit_code": 1},
        {"at_work": (0, 0)},
        {"answered": 0, "offered": 0},
        {"answered": 98},
        {"failed": 1},
        {"wrong": 1},
        {"by_replica": Counter(one=100)},
        {"counts": {"retries": 1, "redispatches": 0}},
        {"counts": {"retries": 0, "redispatches": 1}},
    ],
)
def test_less_than_that_has_not_passed(less: dict[str, Any]) -> None:
    assert not passed(**less)


def test_a_proxy_that_may_send_again_may_have_done_so() -> None:
    assert passed("--retries", counts={"retries": 1, "redispatches": 1})
    assert not passed("--retries", failed=1)


def test_no_rounds_are_none() -> None:
    assert not passed("--rounds=0")
