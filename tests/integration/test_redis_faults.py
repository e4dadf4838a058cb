"""Four of the twelve faults of Redis, once each and short; `python -m loadtest.faults redis` has all of them."""

from argparse import Namespace
from collections.abc import Iterator

import pytest

from loadtest.faults import redis_outages
from loadtest.faults.faulty_server import FAKE
from loadtest.faults.redis_faults import FAULTS

OPTIONS = Namespace(backbone=FAKE, tasks=12, on_device=4, rate=80.0, longest=1.5, readers=4)


@pytest.fixture(scope="module")
def setting() -> Iterator[redis_outages.Setting]:
    with redis_outages.setting(OPTIONS) as made:
        yield made


@pytest.mark.parametrize("name", ["down at start", "half-open", "changed password", "FLUSHALL"])
def test_known_tasks_are_answered_and_changes_follow(setting: redis_outages.Setting, name: str) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    done = redis_outages.run_once(setting, fault, 0, "a test")
    assert done.right, done  # how fast it went is the long form's to judge
