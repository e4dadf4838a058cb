from __future__ import annotations

import argparse
import io
import shlex
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console

from loadtest.faults import histories
from loadtest.faults.history_places import FAULTS, PLACES
from loadtest.faults.history_replicas import Replica, Sight, Window
from loadtest.faults.history_verdict import History, check_replica
from loadtest.faults.linearizability import Operation
from loadtest.faults.task_model import Answer, Call
from prompt_store import TaskRecord


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/faults"))
    histories.add_options(parser)
    return parser.parse_args(flags)


def good(seed: int) -> History:
    """Enough of everything, and nothing wrong."""
    changes = [Operation("w", Call("publish", "t"), 0, 1, Answer(revision=n)) for n in range(1, 10)]
    return History(seed, "none", changes, sights=100, windows=5)


def lagging(fault: str) -> History:
    """A write at 0 s that a replica saw after 10 s, with a window each second."""
    history = History(0, fault, [Operation("w", Call("publish", "t"), 0, 0, Answer(revision=1))])
    replica = Replica(Mock(), "replica 0", [Sight(10.0, "t", TaskRecord("t", {}, (), 1), 0)])
    check_replica(history, replica, [Window(n + 0.2, n + 0.8) for n in range(10)])
    return history


def test_a_fault_that_does_nothing_excuses_no_lag() -> None:
    history = lagging("none")
    assert history.stale == history.raw_stale == [10.0]
    assert history.late


def test_a_fault_starts_the_clock_again_and_the_whole_time_is_told_too() -> None:
    history = lagging("reset")
    assert history.stale == [pytest.approx(0.2)]
    assert history.raw_stale == [10.0]
    assert not history.late


def test_all_that_was_asked_for_was_done() -> None:
    outcome = histories._outcome(parsed(), [good(seed) for seed in range(100)])
    assert (outcome.name, outcome.passed) == ("histories-redis", True)
    assert outcome.facts["backbone"] == "no model"


@pytest.mark.parametrize("flags", [(), ("--histories=0",)])
def test_no_histories_have_not_passed(flags: tuple[str, ...]) -> None:
    assert not histories._outcome(parsed(*flags), []).passed


def test_fewer_than_asked_for_have_not_passed() -> None:
    assert not histories._outcome(parsed("--histories=2"), [good(0)]).passed


@pytest.mark.parametrize("flag", ["--histories=1", "--writing=0.5", "--fault=reset"])
def test_a_part_has_a_name_of_its_own(flag: str) -> None:
    outcome = histories._outcome(parsed(flag), [good(0)])
    assert outcome.name == "histories-redis-part"


def test_what_is_to_be_played_again_is_not_kept_among_the_results(tmp_path: Path) -> None:
    history, told = good(7), io.StringIO()
    history.wrong.append("two orders")
    options = parsed("--fault=kill -9", f"--out={tmp_path}")
    histories._tell(history, options, Console(file=told, width=500))
    (line,) = (line for line in told.getvalue().splitlines() if "python -m" in line)
    again = shlex.split(line.partition("loadtest.faults histories ")[2])
    assert parsed(*again).out == Path(tempfile.gettempdir())
    assert (parsed(*again).seed, parsed(*again).fault) == (7, "kill -9")


@pytest.mark.parametrize("kind", PLACES)
async def test_the_faults_that_can_be_asked_for_are_those_there_are(kind: str, tmp_path: Path) -> None:
    async with PLACES[kind](tmp_path) as place:
        assert sorted(place.faults) == sorted(FAULTS[kind])


def test_a_fault_that_the_store_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="the file store has kill -9, lock, none"):
        histories.run(parsed("--store=file", "--fault=reset"), Console(quiet=True))
    with pytest.raises(SystemExit):
        parsed("--fault=resets")
