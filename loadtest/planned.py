"""A plan's phases as locust has them: so many users, at once, and when they were truly there.

Owns: what one process of a load counts, and when a phase begins and ends. Standard library and locust only. Must not
know: what a user sends, or how a run is judged.
"""

from __future__ import annotations

import time

from locust import LoadTestShape
from locust.runners import MasterRunner, Runner

from loadtest import record, shapes
from loadtest.timeline import OTHERS, Timeline

_TELL = 10.0  # seconds between two lines of progress
_LATE = 60.0  # seconds that a phase waits for its users, on machines with much to do; then it is over, and has failed
_LAST_REPORTS = 10.0  # seconds at a master's end, at most: locust does not wait for what workers counted last
_REPORT_EACH = 3.0  # seconds between two reports of a worker: locust's own


class Run:
    """What this process counts and, at the master, when each phase was."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.group = OTHERS  # of users that start now
        self.ended = 0.0  # when the last users were asked to stop; 0: not yet
        self.stretches: list[record.Stretch] = []
        self.memory: list[tuple[float, int]] = []
        self.over = 0.0  # at a master: when the last user was gone
        self.heard: dict[str, float] = {}  # at a master: each worker's last report

    def silent(self) -> set[str]:
        """Workers whose last counts have not come."""
        end = self.over or (self.ended or time.time()) - 2 * _REPORT_EACH
        return {worker for worker, at in self.heard.items() if at < end}

    def lost(self, runner: Runner | None) -> set[str]:
        """Those, and the workers that are not heard of any more."""
        return _missing(runner) | self.silent()


def _missing(runner: Runner | None) -> set[str]:
    return {one.id for one in runner.clients.missing} if isinstance(runner, MasterRunner) else set()


def _at_once(phases: list[shapes.Phase]) -> float:
    """Users a second: every change in one go. Locust adds and takes away so many, then waits for a second."""
    return float(max(phase.users for phase in phases))


class Planned(LoadTestShape):
    """Locust's shape for any plan: the users of the phase that runs."""

    abstract = True  # locust would make one of its own otherwise, whatever --shape says

    def __init__(self, phases: list[shapes.Phase], runner: Runner, run: Run) -> None:
        super().__init__()
        self._phases, self._runner, self._run = phases, runner, run
        self._ahead = iter(phases)
        self._phase: shapes.Phase | None = None
        self._begin = 0.0  # of the phase: when its users were there; before that, when they were asked for
        self._since = 0.0  # the same by a clock that nobody sets
        self._there = False
        self._told = time.time()

    def tick(self) -> tuple[int, float] | None:
        """What locust asks once a second: users, and how fast to come to them; None at the end."""
        now = time.time()
        if self._run.over:
            if self._runner.user_count:  # workers' users, who wait for their last answer
                self._run.over = now
            done = self._run.silent() <= _missing(self._runner) or now > self._run.over + _LAST_REPORTS
            return None if done and not self._runner.user_count else (0, _at_once(self._phases))
        phase = self._phase
        if phase is not None and not self._there and self._runner.user_count == phase.users:
            self._begin, self._since, self._there = now, time.monotonic(), True
        if phase is not None and time.monotonic() < self._since + self._patience(phase):
            if now - self._told >= _TELL:
                self._told = now
                last = self._run.timeline.between(now - _TELL, now)
                print(
                    f"load test: {self.get_run_time():,.0f} s, {last.rate:,.0f} answered a second, "
                    f"{last.refused:,} refused, {last.failed:,} failed{self._where()}",
                    flush=True,
                )
        else:
            if self._phase is not None:
                there = None if self._there else self._runner.user_count
                self._run.stretches.append(
                    record.Stretch(self._phase.name, self._begin, now, self._phase.users, there=there)
                )
            phase = next(self._ahead, None)
            self._phase, self._begin, self._since, self._there = phase, now, time.monotonic(), False
            if phase is not None:
                print(
                    f"load test: {phase.name}, {phase.users} users{self._where()}, {phase.seconds:g} s",
                    flush=True,
                )
                self._runner.send_message("group", phase.group)
        if phase is None and isinstance(self._runner, MasterRunner):
            self._run.over = now
            return 0, _at_once(self._phases)
        return None if phase is None else (phase.users, _at_once(self._phases))

    def _patience(self, phase: shapes.Phase) -> float:
        """How long it lasts from here: its users take their time to come, but those of a lost worker never do."""
        if self._there or _missing(self._runner):
            return phase.seconds
        return max(phase.seconds, _LATE)

    def _where(self) -> str:
        return f" on {self._runner.worker_count} workers" if isinstance(self._runner, MasterRunner) else ""
