"""Whether this server takes work: starting, ready, draining.

Owns: that one word, and what a caller is told. Must not know: what starting or draining involves.
"""

from __future__ import annotations

from typing import Literal

from server.errors import Draining, NotReady
from server.metrics import Metrics

Phase = Literal["starting", "ready", "draining"]


class Lifecycle:
    """Goes one way: starting, ready, draining."""

    def __init__(self, metrics: Metrics) -> None:
        self.phase: Phase = "starting"
        metrics.watch(metrics.ready, lambda: float(self.phase == "ready"))

    def admit(self) -> None:
        """Return when work may be accepted; NotReady or Draining when not."""
        if self.phase == "ready":
            return
        if self.phase == "starting":
            raise NotReady("the model or the store is not ready yet")
        raise Draining("the server is stopping").closing()
