"""Whether this server takes work: starting, ready, leaving, draining.

Owns: that one word, and what a caller is told. Must not know: what starting or draining involves.
"""

from __future__ import annotations

from typing import Literal

from server.errors import Draining, NotReady
from server.metrics import Metrics

Phase = Literal["starting", "ready", "leaving", "draining"]


class Lifecycle:
    """Goes one way: starting, ready, leaving, draining.

    A server that is leaving answers as before and says only in `/readyz` that it will not for long: whoever deals out
    requests has time to hear of it.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.phase: Phase = "starting"
        metrics.watch(metrics.ready, lambda: float(self.phase == "ready"))

    def admit(self) -> None:
        """Return when work may be accepted; NotReady or Draining when not."""
        if self.phase in ("ready", "leaving"):
            return
        if self.phase == "starting":
            raise NotReady("the model or the store is not ready yet")
        raise Draining("the server is stopping").closing()

    def check_ready(self) -> None:
        """Return when new callers should be sent here; NotReady or Draining when not."""
        self.admit()
        if self.phase == "leaving":
            raise Draining("the server will stop soon")
