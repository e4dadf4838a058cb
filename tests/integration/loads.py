"""What the tests of loads share: how a load is started, and what a server that answers at once says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAR_OFF = ["--p99=30000", "--recover-p99=30000"]


def said(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMUX_", "LOCUST_"))
    }
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env={**clean, **variables}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


def an_answer(task_id: str = "a") -> bytes:
    body = b'{"task_id": "%b", "data": [{}]}' % task_id.encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def soon() -> None:
    """Callers wait for their answers most of the time: what is asked for at full speed shows no more, and costs."""
    await asyncio.sleep(0.02)


async def fine(nth: int) -> bytes:
    await soon()
    return an_answer()
