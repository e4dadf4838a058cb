"""The scale proof in short: replicas, a real proxy and a real Redis; the long form is `python -m loadtest.faults`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.faults.fetched_program import NoProgram
from loadtest.faults.outcome import Outcome
from loadtest.faults.proxy_process import find_haproxy


@pytest.fixture(scope="module", autouse=True)
def _needs_a_proxy() -> None:
    try:
        find_haproxy()
    except NoProgram as error:
        pytest.skip(f"NO HAPROXY, NOTHING BEHIND A PROXY IS TESTED: {error}")


def run(name: str, *flags: str) -> tuple[Outcome, dict[str, Any]]:
    experiment = importlib.import_module(f"loadtest.faults.{name}")
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    experiment.add_options(parser)
    outcome = experiment.run(parser.parse_args(flags), Console(quiet=True))
    return outcome, {str(row["figure"]): row["value"] for row in outcome.rows}


def test_a_rolling_restart_is_not_noticed_by_callers() -> None:
    outcome, figures = run(
        "rolling", "--backbone=fake", "--replicas=2", "--rounds=1", "--rate=100", "--tasks=20"
    )
    assert outcome.passed, outcome.facts["examples"]
    assert figures["restarts"] == 2
    assert figures["failed requests"] == figures["wrong answers"] == figures["exit codes other than 0"] == 0
    assert figures["requests"] > 50
    assert figures["tried again by the proxy"] == figures["sent on to another replica"] == 0


def test_moves_under_load_mix_nothing() -> None:
    outcome, figures = run(
        "publishes", "--backbone=fake", "--replicas=2", "--moves=50", "--rate=100", "--tasks=10", "--movers=2"
    )
    # Not whether it `passed`: how soon is for the long form, on a machine that does nothing else.
    assert not outcome.facts["examples"]
    assert figures["moves made"] == 50
    for never in ("tasks that stayed behind", "moves failed", "failed requests", "wrong answers"):
        assert figures[never] == 0, never
    assert figures["ways to another server timed"] > 0
    assert all(outcome.facts["gave_up_their_slot"].values())
    assert figures["retries by the proxy"] == figures["redispatches by the proxy"] == 0


def test_a_fleet_is_filled_started_loaded_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "fleet.png"
    for seconds in (4, 20):  # a machine that stands still sends too little in four
        data = f"--data={tmp_path / f'redis-{seconds}'}"
        flags = ("--backbone=fake", "--replicas=2", "--tasks=50", "--users=2", data)
        outcome, figures = run("fleet", *flags, "--seed=3", f"--time={seconds}s", f"--picture={picture}")
        assert figures["failed requests"] == 0
        if outcome.passed and figures["requests"] > 10:
            break
    assert outcome.passed, str(figures)
    assert figures["requests"] > 10
    assert figures["replica-1: requests that found their prompt loaded"] > 0
    assert [look["tasks"] for look in outcome.facts["after"]] == [50, 50]
    assert figures["replica-0: tasks served"] == figures["replica-1: tasks served"] == 50
    assert figures["replica-1: share of the requests"] > 0.2
    assert figures["tasks published a second"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")

    with pytest.raises(ValueError, match="take another folder"):
        run("fleet", *flags, "--seed=4", "--time=1s")
    for seconds in (2, 10):
        outcome, figures = run("fleet", *flags, "--seed=3", f"--time={seconds}s")
        if figures["requests"]:
            break
    # Not whether it `passed`: two seconds are too few for even shares where other tests run as well.
    assert figures["requests"] > 0
    assert figures["failed requests"] == figures["locust's exit code"] == 0
    assert outcome.facts["filled_earlier"]
    assert figures["tasks published a second, filled earlier"] > 0
