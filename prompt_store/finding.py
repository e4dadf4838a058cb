"""One line of a check-up: what was looked at, what was found, and what to change.

Owns: this shape, which every check gives. Must not know: any check.
"""

from dataclasses import dataclass
from typing import Final, Literal

Verdict = Literal["ok", "warning", "problem"]

UNKNOWN: Final = "unknown"  # as `found`: this could not be asked


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` is what to do, as exact as can be: a command, a line of a file; empty where all is well."""

    name: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""
