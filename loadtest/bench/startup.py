"""From the start of a server process to its first answer, and where that time goes by the server's own log.

Owns the polling and the reading of the log. Knows nothing of prompts or loads.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from loadtest import http_client
from loadtest.bench.rounds import SideFailed
from loadtest.ports import free_port
from loadtest.server_process import process, serve_command

_PAUSE = 0.01
_PATIENCE = 120.0
# What ends with each line of the log, in order.
STAGES = {
    "settings": "interpreter and imports",
    "loading_backbone": "sockets and apps",
    "backbone_loaded": "torch, transformers and the backbone",
    "store_read": "the store and its first prompts",
}
LAST = "ready to first answer"


@dataclass(frozen=True)
class Start:
    """Seconds from the start of the process to its first answer, in all and by stage."""

    seconds: float
    stages: dict[str, float]


def first_answer(flags: Sequence[str], request: Callable[[str], bytes]) -> Start:
    """Start `promptmux serve` and ask for `request(url)` until it is answered with 200. Raises SideFailed."""
    port, admin = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    asked = request(url)
    command = serve_command(
        "--port", str(port), "--admin-port", str(admin), "--log-format", "json", "--log-level", "info", *flags
    )
    with process(command) as started:
        while not _answered(url, asked):
            if started.popen.poll() is not None or time.time() - started.began > _PATIENCE:
                raise SideFailed(f"no answer after the start:\n{started.said()[-2000:]}")
            time.sleep(_PAUSE)
        answered = time.time()
        return Start(answered - started.began, stages(started.said(), started.began, answered))


def stages(log: str, began: float, answered: float) -> dict[str, float]:
    """Seconds of each stage that the log tells of; what it does not tell belongs to the stage that comes next."""
    reached = {}
    for line in log.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            if said.get("event") in STAGES:
                reached[said["event"]] = datetime.fromisoformat(said["timestamp"]).timestamp()
    names = [STAGES[event] for event in STAGES if event in reached] + [LAST]
    times = [began, *(reached[event] for event in STAGES if event in reached), answered]
    return {name: b - a for name, (a, b) in zip(names, itertools.pairwise(times), strict=True)}


def _answered(url: str, request: bytes) -> bool:
    try:
        return bool(http_client.closed_loop(url, [request]).answered)
    except OSError:
        return False  # it does not listen yet
