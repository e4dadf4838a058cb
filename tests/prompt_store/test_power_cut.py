"""The power goes at any operation on the disk: the short form of `python -m loadtest.faults crash`, for both stores."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache

import pytest

from loadtest.faults.crash import GAPS, OPENERS, Trial
from loadtest.faults.crash_recording import OURS, Recording
from loadtest.faults.strace import NoStrace, find_strace

# Each sync that our code makes, and a scenario that needs it.
NEEDED = {
    "blobs: write of a/store/tmp/*": "publishes",
    "blobs: write > _sync_folder of a/store/blobs": "publishes",
    "blobs: create > _sync_folder of .": "publishes",
    "blobs: create > _sync_folder of a": "publishes",
    "blobs: create > _sync_folder of a/store": "bytes put back",
}


@pytest.fixture(scope="module")
def recorded() -> Callable[[str, str], Recording]:
    """What a scenario does to the disk; each is run once."""
    try:
        find_strace()
    except NoStrace as error:
        pytest.skip(f"NO POWER CUTS TRIED: {error}")
    return cache(Recording)


@pytest.fixture(scope="module", params=["file", "redis, mended"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trial(kind: str) -> Iterator[Trial]:
    with closing(OPENERS[kind]()) as opener:
        yield Trial(opener, samples=1, sectors=1)


def test_after_a_cut_anywhere_the_store_holds_what_was_acknowledged_and_no_half(
    kind: str, trial: Trial, recorded: Callable[[str, str], Recording]
) -> None:
    assert [*trial.violations(recorded(kind, "publishes"), journal=kind in GAPS)] == []
    assert trial.states > 20


def test_without_the_sync_of_its_commit_a_store_loses_what_it_acknowledged(
    kind: str, trial: Trial, recorded: Callable[[str, str], Recording]
) -> None:
    recording = recorded(kind, "publishes")
    commits = [by for by in recording.syncs if by.endswith(("-wal", ".aof"))]
    found = next(trial.violations(recording, deaf=commits), None)
    assert found is not None
    assert found.kind == "lost"


@pytest.mark.parametrize("kind", ["file"], indirect=True)
@pytest.mark.parametrize("sync", NEEDED)
def test_a_file_store_needs_every_sync_it_makes(
    kind: str, trial: Trial, recorded: Callable[[str, str], Recording], sync: str
) -> None:
    recording = recorded(kind, NEEDED[sync])
    assert recording.syncs[OURS + sync]
    assert next(trial.violations(recording, deaf=[OURS + sync]), None)


@pytest.mark.parametrize("kind", ["file"], indirect=True)
def test_bytes_that_were_lost_and_put_back_are_there_to_stay(
    kind: str, trial: Trial, recorded: Callable[[str, str], Recording]
) -> None:
    assert [*trial.violations(recorded(kind, "bytes put back"))] == []


@pytest.mark.parametrize("kind", ["file"], indirect=True)
def test_a_new_sync_comes_with_its_test(kind: str, recorded: Callable[[str, str], Recording]) -> None:
    made = {by for name in ("publishes", "bytes put back") for by in recorded(kind, name).syncs}
    assert {by.removeprefix(OURS) for by in made if by.startswith(OURS)} == {*NEEDED}


@pytest.mark.parametrize("kind", ["file"], indirect=True)
@pytest.mark.parametrize("folders", [1, 4])
def test_a_store_that_another_process_began_to_make_is_durable(
    kind: str, trial: Trial, recorded: Callable[[str, str], Recording], folders: int
) -> None:
    assert next(trial.violations(recorded(kind, f"half made, {folders}")), None) is None
