"""One metric's declaration: name, kind, help text and labels, in the form in which documents and tests read it.

Owns: that form, and the names of the series that Prometheus makes of it. Must not know: which metrics there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "promptmux_"


@dataclass(frozen=True, slots=True)
class Family:
    """A metric as Prometheus shows it: a counter's name has its `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that can be asked for."""
        if self.kind == "histogram":
            return tuple(self.name + end for end in ("_bucket", "_sum", "_count"))
        return (self.name,)
