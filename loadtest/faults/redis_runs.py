"""What one run of a Redis fault came to, whether that is as wanted, and how it is told.

Owns: the bounds, and the rows and facts of a result. Must not know: how a run goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from loadtest.faults.known_load import Health, Tally
from loadtest.faults.redis_site import Fault

CONVERGED_SECONDS: Final = 3.0
SLOWEST_SECONDS: Final = 2.0
ANSWERED_SHARE: Final = 0.9  # of the requests that were due while the fault lasted
_LOOKS_A_SECOND: Final = 2.0
WANTED: Final = (
    "each fault seen to be there while it lasts; every request for a known task answered 200 with the right scores, "
    f"within {SLOWEST_SECONDS:g} s of when it was due, and {ANSWERED_SHARE:.0%} of those due while the fault lasts "
    "before it is healed; every publish a success or a 503 store_unavailable with Retry-After, and one of these at "
    "least where Redis takes no writes; every acknowledged version is current in the store in the end, and none that "
    "nobody published; /healthz and /readyz 200 all the time, staleness shown while Redis cannot be read; started "
    "without Redis, the server is ready soon; a version published directly is served at most "
    f"{CONVERGED_SECONDS:g} s after healing, and in the end everything that the store has"
)


@dataclass
class Run:
    """One run. `converged` is None where a version was not served at all."""

    fault: type[Fault]
    number: int
    seed: str
    rate: float  # requests a second
    ready_seconds: float  # that a server's start may take while the fault lasts
    lasted: float = 0.0
    load: Tally = field(default_factory=Tally)  # since the last run
    during: Tally = field(default_factory=Tally)  # of this, from the fault's beginning until it was healed
    health: Health = field(default_factory=Health)
    watched: float = 0.0  # seconds
    published: int = 0
    refused: int = 0
    others: Counter[str] = field(default_factory=Counter)
    happened: bool = False  # the fault was really there
    dropped: int = 0  # messages that the proxy kept from the server
    started_in: float | None = None  # seconds until the server was ready while the fault lasted
    converged: float | None = None
    never_served: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # tasks that the store has otherwise than acknowledged
    alive: bool = True

    @property
    def right(self) -> bool:
        """Whether everything was as it must be on a machine however slow."""
        return (
            self.happened
            and self.alive
            and self.load.clean
            and self.during.offered > 0
            and self.health.looks > 0
            and not (self.others or self.health.unwell or self.never_served or self.lost)
            and (self.refused if self.fault.refuses_writes else self.published) > 0
            and self.converged is not None
        )

    @property
    def late(self) -> list[str]:
        """What took too long, or came too seldom."""
        # A poll may have come just after the fault's beginning, and the last look just before its end.
        shown = not self.fault.cuts_reads or self.health.staleness >= self.lasted - 1.0
        bounds = {
            "answered while it lasted": self.during.answered >= ANSWERED_SHARE * self.rate * self.lasted,
            "slowest": self.load.slowest <= SLOWEST_SECONDS,
            "ready": self.started_in is None or self.started_in <= self.ready_seconds,
            "converged": self.converged is not None and self.converged <= CONVERGED_SECONDS,
            "staleness": shown,
            "looks at health": self.health.looks >= _LOOKS_A_SECOND * self.watched,
        }
        return [name for name, held in bounds.items() if not held]

    @property
    def passed(self) -> bool:
        """Whether it went as wanted."""
        return self.right and not self.late


def row(runs: Sequence[Run]) -> dict[str, Any]:
    """The table's row of one fault."""
    times = [one.converged for one in runs]
    return {
        "fault": runs[0].fault.name,
        "runs": len(runs),
        "requests": sum(one.load.offered for one in runs),
        "while it lasted": sum(one.during.answered for one in runs),
        "failed": sum(one.load.failed for one in runs),
        "wrong": sum(len(one.load.wrong) for one in runs),
        "slowest s": max(one.load.slowest for one in runs),
        "published": sum(one.published for one in runs),
        "503": sum(one.refused for one in runs),
        "other": sum(one.others.total() for one in runs),
        "lost": sum(len(one.lost) for one in runs),
        "not healthy": sum(one.health.unwell.total() for one in runs),
        "staleness s": max(one.health.staleness for one in runs),
        "converged s": "never" if None in times else max(time for time in times if time is not None),
        "passed": sum(one.passed for one in runs),
    }


def facts(one: Run) -> dict[str, Any]:
    """Everything about one run."""
    return {
        "fault": one.fault.name,
        "run": one.number,
        "seed": one.seed,
        "passed": one.passed,
        "late": one.late,
        "lasted": round(one.lasted, 3),
        "requests": one.load.offered,
        "answered while it lasted": one.during.answered,
        "due while it lasted": round(one.rate * one.lasted),
        "slowest": round(one.load.slowest, 3),
        "failures": dict(one.load.failures),
        "wrong": one.load.wrong[:5],
        "published": one.published,
        "refused": one.refused,
        "others": dict(one.others),
        "happened": one.happened,
        "messages dropped": one.dropped,
        "looks at health": one.health.looks,
        "unwell": dict(one.health.unwell),
        "staleness": one.health.staleness,
        "sources": sorted(one.health.sources),
        "ready in": one.started_in and round(one.started_in, 3),
        "converged": one.converged and round(one.converged, 3),
        "never served": one.never_served,
        "lost": one.lost,
        "server alive": one.alive,
    }


def line(one: Run) -> str:
    """One run in one line, with what was not as wanted."""
    told = facts(one)
    names = ("late", "failures", "wrong", "others", "unwell", "never served", "lost")
    bad = {name: told[name] for name in names if told[name]}
    if not one.happened:
        bad["happened"] = False
    return (
        f"{'ok' if one.passed else 'FAILED':7}{one.fault.name:18}{one.lasted:5.1f} s  "
        f"{one.load.answered:5} answered, the slowest in {one.load.slowest:.2f} s  "
        f"{one.published:3} published {one.refused:3} refused  stale {one.health.staleness:5.2f} s  "
        f"converged {'never' if one.converged is None else f'{one.converged:.2f} s'}  {bad or ''}"
    )
