"""What came of a load's requests, by second and by group of tasks.

Owns: the counts, latencies in buckets 2 % wide, and their sums over a stretch of time. Several processes count each for
themselves and send their rows to one that adds them up. Standard library only. Must not know: what sent the requests.

A request belongs to the second in which it was sent, or should have been sent, not to that of its answer: a stall is
found where it began.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Outcome = Literal["answered", "refused", "failed"]
"""answered: with 200 and, in the closed loop, which reads the body, with the result of the task that was asked for;
refused: 429 or 503 with Retry-After, as the server may; failed: all else.
"""

OTHERS: Final = "others"
GREEDY: Final = "greedy"

_WIDTH: Final = 1.02
_LEAST_MS: Final = 0.01


def bucket(seconds: float) -> int:
    """The bucket of a latency."""
    return math.ceil(math.log(max(seconds * 1000, _LEAST_MS), _WIDTH))


def milliseconds(of_bucket: int) -> float:
    """The upper edge of a bucket: what a percentile reads, at most 2 % too high."""
    return float(_WIDTH**of_bucket)


def is_refusal(status: int, retry_after: str | None) -> bool:
    """Whether a server said in order that it has too much to do: a client that waits may come again."""
    return status in (429, 503) and bool(retry_after)


@dataclass
class Part:
    """The requests of some seconds."""

    seconds: float
    answered: int = 0
    refused: int = 0
    failed: int = 0
    latencies: Counter[int] = field(default_factory=Counter)  # of the answered, by bucket

    @property
    def sent(self) -> int:
        """All of them."""
        return self.answered + self.refused + self.failed

    @property
    def rate(self) -> float:
        """Answered in a second."""
        return self.answered / self.seconds if self.seconds > 0 else 0.0

    @property
    def fail_share(self) -> float:
        """Which part of all sent failed; 0 when none was sent."""
        return self.failed / self.sent if self.sent else 0.0

    @property
    def refused_share(self) -> float:
        """Which part of all sent was refused."""
        return self.refused / self.sent if self.sent else 0.0

    def percentile(self, share: float) -> float:
        """Milliseconds that `share` of the answered took at most; infinite when none was answered."""
        left = math.ceil(share * self.answered)
        for one in sorted(self.latencies):
            left -= self.latencies[one]
            if left <= 0:
                return milliseconds(one)
        return math.inf

    def add(self, outcome: Outcome, latency: int) -> None:
        """Count one more."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        if outcome == "answered":
            self.latencies[latency] += 1

    def take_in(self, other: Part) -> None:
        """Count another part's requests as well; the seconds stay."""
        self.answered += other.answered
        self.refused += other.refused
        self.failed += other.failed
        self.latencies.update(other.latencies)  # adds; += would look at every bucket again


class Timeline:
    """Requests by the second of a wall clock, and by group."""

    def __init__(self, rows: Iterable[Sequence[Any]] = ()) -> None:
        self._parts: dict[int, dict[str, Part]] = {}
        self.merge(rows)

    def add(self, at: float, group: str, outcome: Outcome, seconds: float) -> None:
        """Count a request that was sent `at` and took `seconds`, which only count if it was answered."""
        self._part(int(at), group).add(outcome, bucket(seconds) if outcome == "answered" else 0)

    def rows(self) -> list[list[Any]]:
        """All as plain values, for JSON and for the wire."""
        return [
            [
                second,
                group,
                part.answered,
                part.refused,
                part.failed,
                sorted(map(list, part.latencies.items())),
            ]
            for second, groups in sorted(self._parts.items())
            for group, part in sorted(groups.items())
        ]

    def take(self) -> list[list[Any]]:
        """The rows, which are counted here no more."""
        rows = self.rows()
        self._parts.clear()
        return rows

    def merge(self, rows: Iterable[Sequence[Any]]) -> None:
        """Count what another timeline's rows say as well."""
        for second, group, answered, refused, failed, latencies in rows:
            counts = Counter({int(one): int(count) for one, count in latencies})
            self._part(int(second), str(group)).take_in(Part(1.0, answered, refused, failed, counts))

    def seconds(self) -> range:
        """From the first second with a request to behind the last one."""
        return range(min(self._parts), max(self._parts) + 1) if self._parts else range(0)

    def between(self, begin: float, end: float, group: str | None = None) -> Part:
        """All of the whole seconds from `begin` to `end`, of one group or of every one."""
        first, last = math.ceil(begin), math.floor(end)
        total = Part(float(max(0, last - first)))
        for second in range(first, last):
            for whose, part in self._parts.get(second, {}).items():
                if group in (None, whose):
                    total.take_in(part)
        return total

    def _part(self, second: int, group: str) -> Part:
        return self._parts.setdefault(second, {}).setdefault(group, Part(1.0))
