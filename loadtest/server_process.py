"""Start a promptmux server for a load test, and end it. Standard library only."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """A server that answers: its addresses and its process id."""

    url: str
    admin_url: str
    pid: int


@contextlib.contextmanager
def running_server(*flags: str, patience: float = 120.0) -> Iterator[Running]:
    """Run `promptmux serve` on free loopback ports until the block ends; raises RuntimeError with its log."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "promptmux", "serve", "--port", "0", "--admin-port", "0", *flags]
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parent.parent
        )

        def said() -> str:
            log.seek(0)
            return log.read()

        try:
            end = time.monotonic() + patience
            while True:
                found = [
                    re.search(rf"^\s+{name}\s+(http://\S+)", said(), re.M) for name in ("public", "admin")
                ]
                if found[0] and found[1] and _ready(found[0][1]):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server did not start:\n{said()[-4000:]}")
                time.sleep(0.1)
            yield Running(found[0][1], found[1][1], process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
