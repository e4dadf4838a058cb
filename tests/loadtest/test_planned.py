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
shape.get_run_time = lambda: clock.now
planned.time.time = lambda: 1000.0 + clock.now
asked = []
for now, users in enumerate([0, 200, 200, 200, 200, 200, 1600, 1600, 1600, 1600, 1600, 900, 300, 201, 201, 201]):
    clock.now, runner.user_count = float(now), users
    asked.append(shape.tick())
print(json.dumps([asked, [[one.begin, one.end, one.users, one.there] for one in run.stretches]]))
"""


def test_users_are_asked_for_at_once_and_a_phase_begins_when_they_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", TICKS], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    asked, stretches = json.loads(ended.stdout.splitlines()[-1])
    assert [users for users, _ in asked[:-1]] == [200] * 5 + [1600] * 5 + [200] * 5
    assert all(rate >= 1400 for _, rate in asked[:-1])  # users a second: the change is over within one
    assert asked[-1] is None
    assert stretches == [
        [1001.0, 1005.0, 200, None],
        [1006.0, 1010.0, 1600, None],
        [1010.0, 1015.0, 200, 201],  # one never went
    ]
