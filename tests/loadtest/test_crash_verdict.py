from __future__ import annotations

import argparse
from typing import Any

import pytest

from loadtest.faults import crash
from loadtest.faults.crash_gaps import MENDED, known_gap
from loadtest.faults.outcome import Outcome

GOOD = {
    "crash points": 10,
    "ways to lose": 20,
    "violations": 0,
    "gaps": 0,
    "unknown gaps": 0,
    "needed": 2,
    "needed and noticed": 2,
}
BAD = {**GOOD, "violations": 30, "needed": 0, "needed and noticed": 0, "unknown gaps": "–"}


def outcome(*flags: str, **file: Any) -> Outcome:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    crash.add_options(parser)
    options = parser.parse_args(flags)
    rows = [
        {"store": kind, **(BAD if kind == crash.TOLD_ONLY else GOOD), **(file if kind == "file" else {})}
        for kind in options.stores
    ]
    return crash._outcome(options, rows, {})


def test_an_unmended_redis_is_told_and_not_judged() -> None:
    assert outcome().passed
    assert outcome().name == "crash"


@pytest.mark.parametrize(
    "less",
    [
        {"violations": 1},
        {"unknown gaps": 1},
        {"crash points": 0},
        {"ways to lose": 0},
        {"needed and noticed": 1},
        {"needed": 0, "needed and noticed": 0},
    ],
)
def test_less_than_all_has_not_passed(less: dict[str, Any]) -> None:
    assert not outcome(**less).passed


def test_a_part_has_a_name_of_its_own() -> None:
    part = outcome("--stores", "file")
    assert (part.name, part.passed) == ("crash-part", True)
    assert "of a part (file)" in part.wanted
    assert outcome("--samples=1").name == outcome("--sectors=1").name == "crash-part"


def test_where_nothing_is_judged_nothing_has_passed() -> None:
    part = outcome("--stores", "redis")
    assert (part.name, part.passed) == ("crash-part", False)
    assert "nothing was judged" in part.wanted


def test_a_known_gap_is_told_from_another() -> None:
    manifest = "appendonlydir/appendonly.aof.manifest"
    log = "appendonlydir/appendonly.aof.1.incr.aof"
    whole = {"appendonlydir": None, manifest: b"file appendonly.aof.1.incr.aof seq 1 type i\n", log: b"x"}
    assert known_gap(whole) == ""
    assert known_gap({**whole, log: b""}) == ""
    assert known_gap({}) == next(iter(MENDED))
    del whole[log]
    assert known_gap(whole) == list(MENDED)[1]
    assert known_gap({"appendonlydir": None}) == ""
