"""A server's resident memory, looked at again and again.

Owns: reading it, from a process of this machine or from a server's /metrics. Standard library only. Must not know: what
the memory is for. A look that fails is left out; that there were none at all is seen by whoever reads the list.
"""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn


def resident_bytes(of: str, key: str = "") -> int:
    """What a process id, or the process behind a URL of /metrics, holds; `key` is for the latter, if it wants one.

    Raises:
        OSError: there is no such process, or it does not answer.
        ValueError: it wants another key, or what came tells no memory.

    """
    if of.isdigit():
        return int(Path(f"/proc/{of}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    asked = urllib.request.Request(of, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            found = re.search(r"^process_resident_memory_bytes (\S+)$", answer.read().decode(), re.M)
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            raise
        had = "not the one in PROMPTMUX_METRICS_KEY" if key else "and PROMPTMUX_METRICS_KEY has none"
        raise ValueError(f"{of} wants a key of scope metrics, {had} (status {error.code})") from None
    if found is None:
        raise ValueError(f"{of} tells no process_resident_memory_bytes")
    return int(float(found[1]))


def watch(of: str, into: list[tuple[float, int]], *, key: str = "", pause: float = 1.0) -> NoReturn:
    """Look for ever, with a pause between; each look is the wall clock and the bytes."""
    while True:
        try:
            into.append((time.time(), resident_bytes(of, key)))
        except (OSError, ValueError) as error:
            print(f"load test: memory not seen: {error}", flush=True)
        time.sleep(pause)
