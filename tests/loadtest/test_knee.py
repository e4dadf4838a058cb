"""The search for the knee: on servers that are a formula, and on a real socket with a known capacity."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from loadtest import knee_report
from loadtest.http_client import post
from loadtest.knee import Knee, Level, Rules, Trial, judged, search, trial
from loadtest.target import Target
from tests.loadtest.slow_server import ANSWER, serving

RULES = Rules(p99=0.2, first=10.0, factor=2.0, gap=1.02, repeats=1)


def a_trial(rate: float, *, p99: float = 0.01, kept: float = 1.0, lag: float = 0.0) -> Trial:
    return Trial(rate, rate, rate * kept, p99 / 2, p99 * 0.9, p99, 0, 0, lag, 0.1)


def queue(capacity: float) -> Callable[[float], Trial]:
    """A queue in a formula: waiting grows without end towards its capacity."""

    def run(rate: float) -> Trial:
        if rate >= capacity:
            return a_trial(rate, p99=math.inf, kept=capacity / rate)
        return a_trial(rate, p99=4.6 / (capacity - rate))

    return run


@pytest.mark.parametrize("capacity", [33.0, 100.0, 1234.5])
def test_the_knee_is_found_to_within_the_gap(capacity: float) -> None:
    exact = capacity - 4.6 / RULES.p99  # where the formula's p99 is the bound
    knee = search(queue(capacity), RULES)
    assert knee.rate is not None
    assert knee.beyond is not None
    assert knee.rate <= exact < knee.beyond <= knee.rate * RULES.gap
    assert knee.limit == "server"
    assert [level.rate for level in knee.levels] == sorted(level.rate for level in knee.levels)
    assert all(level.good == (level.rate <= knee.rate) for level in knee.levels)


def test_a_first_level_beyond_the_knee_leads_down() -> None:
    knee = search(queue(30.0), Rules(p99=0.2, first=500.0, factor=2.0, gap=1.1, repeats=1))
    assert knee.rate is not None
    assert 0.8 * (30 - 23) < knee.rate <= 30 - 23


def test_a_server_that_carries_nothing_has_no_knee() -> None:
    knee = search(lambda rate: a_trial(rate, p99=9.0), RULES)
    assert knee.rate is None
    assert "not even" in knee_report.sentence(knee.rate, knee.beyond, knee.limit, RULES.p99)


def test_one_that_carries_all_has_none_either() -> None:
    asked: list[float] = []

    def run(rate: float) -> Trial:
        asked.append(rate)
        return a_trial(rate)

    knee = search(run, Rules(p99=0.2, first=10.0, most=70.0, factor=2.0, repeats=2))
    assert (knee.rate, knee.beyond, knee.limit) == (70.0, None, "--most")
    assert asked == [10, 10, 20, 20, 40, 40, 70, 70]
    assert "ask for more" in knee_report.sentence(knee.rate, knee.beyond, knee.limit, RULES.p99)


def test_a_generator_that_is_late_is_no_knee_of_the_server() -> None:
    knee = search(lambda rate: a_trial(rate, lag=0.2 if rate > 50 else 0.0), RULES)
    assert knee.limit == "generator"
    assert [level.rate for level in knee.levels] == [
        10,
        20,
        40,
        80,
    ]  # and no more: that would be about itself
    assert "GENERATOR" in knee_report.sentence(knee.rate, knee.beyond, knee.limit, RULES.p99)


def test_a_generator_that_is_late_at_once_tells_nothing_of_the_server() -> None:
    knee = search(lambda rate: a_trial(rate, lag=0.2), RULES)
    assert (knee.rate, knee.limit, len(knee.levels)) == (None, "generator", 1)
    assert "GENERATOR" in knee_report.sentence(knee.rate, knee.beyond, knee.limit, RULES.p99)


def test_the_middle_trial_decides() -> None:
    fine, stalled = a_trial(50.0), a_trial(50.0, p99=9.0)
    assert judged(50.0, (fine, stalled, fine), RULES).good
    assert not judged(50.0, (stalled, fine, stalled), RULES).good
    lossy = judged(50.0, (a_trial(50.0, kept=0.9),), RULES)
    assert "90%" in lossy.why  # though p99 is well within its bound


def test_the_knee_of_a_server_with_a_known_capacity() -> None:
    """One at a time, 50 ms each: 20 a second at most. A machine that stands still for seconds may show less, often."""
    free = 0.0

    async def answer(nth: int) -> bytes:
        nonlocal free
        now = asyncio.get_running_loop().time()
        free = max(free, now) + 0.05
        await asyncio.sleep(free - now)
        return ANSWER

    with serving(answer) as server:
        written, seeds = itertools.repeat(post(server.url, "/", 0)), itertools.count()

        def run(rate: float) -> Trial:
            return trial(server.url, written, rate, 1.5, connections=64, seed=next(seeds), patience=6.0)

        for _ in range(10):
            knee = search(run, Rules(p99=3.0, first=8.0, factor=2.0, gap=1.3, repeats=1))
            assert knee.rate is None or knee.rate < 2 * 20
            if knee.rate is not None and knee.rate > 20 / 2.5:
                return
    pytest.fail(f"all of {knee.levels}")


def test_a_trial_counts_what_is_lost_against_the_server() -> None:
    async def answer(nth: int) -> bytes:
        return ANSWER if nth % 2 else b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"

    with serving(answer) as server:
        for _ in range(10):  # where the machine stands still, none is answered in time
            lossy = trial(server.url, itertools.repeat(post(server.url, "/", 0)), 100.0, 1.0, connections=8)
            if lossy.kept:
                break
    assert lossy.p99 == math.inf
    assert 0 < lossy.kept < 0.8
    assert lossy.failed > 20


def test_table_json_and_picture(tmp_path: Path) -> None:
    rules = Rules(p99=0.2, first=10.0, factor=2.0, gap=1.1, repeats=3)
    knee = search(queue(70.0), rules)
    console = Console(file=(tmp_path / "said").open("w"), width=200)
    with console.file:
        for level in knee.levels:
            knee_report.tell(level, console)
        knee_report.show(knee, rules, console)
    said = (tmp_path / "said").read_text()
    assert "knee:" in said
    aim = Target("http://x", "a,b", "", "a formula", {"formula": True})
    plain = knee_report.as_plain(
        knee,
        rules,
        aim,
        command="c",
        seconds=1.0,
        settings={"mix": "zipf"},
        facts=knee_report.circumstances(),
    )
    again = json.loads(json.dumps(plain, allow_nan=False))
    assert again["knee_per_second"] == knee.rate
    assert any(one["p99"] is None for level in again["levels"] for one in level["trials"])
    assert knee_report.draw(again, tmp_path / "knee.png").stat().st_size > 1000
    empty = Knee(None, 1.0, (Level(1.0, (a_trial(1.0, p99=math.inf),), False, "x"),), "server")
    plain = knee_report.as_plain(empty, rules, aim, command="c", seconds=1.0, settings={}, facts={})
    assert knee_report.draw(plain, tmp_path / "none.png").stat().st_size > 1000
