"""When a phase of a plan begins, in a process of its own: an import of locust patches sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TICKS = """
import json, time
from types import SimpleNamespace
from loadtest import planned
from loadtest.shapes import Phase

runner = SimpleNamespace(user_count=0, send_message=lambda *said: None)
phases = [Phase("few", 5.0, 200), Phase("many", 5.0, 1600), Phase("few again", 5.0, 200)]
run, clock = planned.Run(), SimpleNamespace(now=0.0)
shape = planned.Planned(phases, runner, run)
planned.time.time = lambda: 1000.0 + clock.now
planned.time.monotonic = lambda: clock.now
asked = []
there = [0] + [200] * 6 + [900] * 2 + [1600] * 6 + [201] * 70
for now, users in enumerate(there):
    clock.now, runner.user_count = float(now), users
    asked.append(shape.tick())
    if asked[-1] is None:
        break
print(json.dumps([asked, [[one.begin, one.end, one.users, one.there] for one in run.stretches]]))
"""


def test_users_are_asked_for_at_once_and_a_phase_takes_its_seconds_from_when_they_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", TICKS], cwd=root, capture_output=True, text=True, timeout=600, check=True
    )
    asked, stretches = json.loads(ended.stdout.splitlines()[-1])
    assert [users for users, _ in asked[:-1]] == [200] * 6 + [1600] * 8 + [200] * 60
    assert all(rate >= 1400 for _, rate in asked[:-1])  # users a second: the change is over within one
    assert asked[-1] is None
    assert stretches == [
        [1001.0, 1006.0, 200, None],
        [1009.0, 1014.0, 1600, None],  # they were slow to come, and it is as long as the others
        [1014.0, 1074.0, 200, 201],  # one never went
    ]
