"""The tests' server with a host memory that forgets and garbles: what it holds of a version is read from a folder.

Owns: that change. It mends nothing by itself: what it finds then would be counted as found by a request. Run as
`python -m loadtest.faults.altered_server`; the folder is in the variable ALTERED_HOST_MEMORY.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import server.app
import server.prompt_sync
from server.host_tier import Held, HostTier
from tests.integration import fake_server


class GarbledHostTier(HostTier[Any]):
    """Holds what it was given, until a file named by the version says what stands there now."""

    folder = Path()

    def get(self, version: str) -> Held[Any] | None:
        """See `HostTier.get`."""
        held = super().get(version)
        path = self.folder / version
        if held is None or not path.exists():
            return held
        said = path.read_bytes()
        path.unlink()
        if said == b"gone":
            self.drop(version)
        else:
            self.put(version, replace(held, data=said[4:]))
        return super().get(version)


if __name__ == "__main__":
    GarbledHostTier.folder = Path(os.environ["ALTERED_HOST_MEMORY"])
    setattr(server.app, "HostTier", GarbledHostTier)  # noqa: B010 — of its imports, which it does not offer
    setattr(server.prompt_sync, "_MEND_SECONDS", 3600.0)  # noqa: B010 — a constant, elsewhere
    sys.exit(fake_server.main())
