"""One run of one shape: which phases it had, and what came of every request.

Owns: the record and its plain form. Standard library only. Must not know: who made it, or how it is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from loadtest.shapes import Shape
from loadtest.timeline import Part, Timeline


@dataclass(frozen=True)
class Stretch:
    """A phase as it was: wall clock, from when its users were all there, and those of the last one gone."""

    name: str
    begin: float
    end: float
    users: int | None = None  # closed loop
    offered: float | None = None  # open loop: requests a second
    there: int | None = None  # closed loop: its users at its end, where they were never as many as wanted


@dataclass
class Record:
    """One run of one shape."""

    shape: Shape
    loop: Literal["closed", "open"]
    stretches: list[Stretch]
    timeline: Timeline
    memory: list[tuple[float, int]] = field(default_factory=list)  # wall clock, bytes of the server
    broken: str = ""  # why this is not the load that was asked for, or not all that came of it
    reasons: Mapping[str, int] = field(default_factory=dict)  # open loop: why requests failed, and how many

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "shape": self.shape,
            "loop": self.loop,
            "stretches": [asdict(one) for one in self.stretches],
            "timeline": self.timeline.rows(),
            "memory": self.memory,
            "broken": self.broken,
            "reasons": dict(self.reasons),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Record:
        """What `as_plain` gave."""
        return cls(
            plain["shape"],
            plain["loop"],
            [Stretch(**one) for one in plain["stretches"]],
            Timeline(plain["timeline"]),
            [(at, size) for at, size in plain["memory"]],
            plain["broken"],
            plain["reasons"],
        )

    def part(self, nth: int, group: str | None = None) -> Part:
        """The requests of a phase."""
        return self.timeline.between(self.stretches[nth].begin, self.stretches[nth].end, group)

    def whole(self, group: str | None = None) -> Part:
        """All requests, those between the phases as well."""
        seconds = self.timeline.seconds()
        return self.timeline.between(seconds.start, seconds.stop, group)
