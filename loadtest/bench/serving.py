"""Our own server as a side of the bench: a store full of tasks, a server on it, and requests for all of them.

Owns how a server is started for a measurement and what its metrics say. Knows nothing of sections or of peers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from loadtest import http_client, workload
from loadtest.bench.options import Options
from loadtest.bench.rounds import SideFailed
from loadtest.prompts import fill_store
from loadtest.server_process import NotStarted, Running, running_server
from prompt_store import BackboneRef

REQUESTS = 8192  # written beforehand, then again from the start
OPEN_CONNECTIONS = 256  # in an open loop hardly any request should have to wait for one


@contextlib.contextmanager
def filled_store(options: Options, shape: BackboneRef, console: Console) -> Iterator[Path]:
    """A store's folder with one prompt for each of the tasks, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"publishing {options.tasks:,} prompts ({options.kind}) …")
        ids = workload.task_ids(options.tasks)
        asyncio.run(fill_store(f"file://{folder}", ids, options.kind, shape))
        yield Path(folder)


@contextlib.contextmanager
def running(options: Options, store: Path, *flags: str) -> Iterator[Running]:
    """Serve the store until the block ends. Raises SideFailed."""
    try:
        with running_server(*serve_flags(options, store), *flags) as server:
            yield server
    except NotStarted as error:
        raise SideFailed(str(error)) from None


def serve_flags(options: Options, store: Path) -> list[str]:
    """What every server of the bench is started with."""
    return ["--store", f"file://{store}", "--backbone", options.backbone, "--dtype", options.dtype]


def requests(options: Options, url: str) -> Iterator[bytes]:
    """Endless requests with the bench's texts, mixed over the tasks."""
    choices = workload.task_choices(options.mix, options.tasks)
    texts = workload.texts(min(options.rows, REQUESTS))
    return itertools.cycle(
        http_client.requests(url, workload.task_ids(options.tasks), texts, choices, REQUESTS)
    )


def wait_until_warm(server: Running, *, quiet: float = 1.0, patience: float = 180.0) -> None:
    """Wait until the server loads no more prompts in the background: their number has stood still for a while."""
    seen, since, end = -1.0, time.monotonic(), time.monotonic() + patience
    while time.monotonic() - since < quiet and time.monotonic() < end:
        slots = metric(server, 'promptmux_tier_entries{tier="device"}')
        if slots != seen:
            seen, since = slots, time.monotonic()
        time.sleep(0.1)


def metric(server: Running, name: str) -> float:
    """The value of one series, named with its labels as it is shown; raises KeyError if the server has no such."""
    with urllib.request.urlopen(f"{server.admin_url}/metrics", timeout=10) as answer:
        return metric_in(answer.read().decode(), name)


def metric_in(exposition: str, name: str) -> float:
    """The value of one series in Prometheus's text format."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", exposition, re.M)
    if found is None:
        raise KeyError(name)
    return float(found[1])


def clean(load: http_client.Load) -> http_client.Load:
    """The load, if every request was answered with 200; raises SideFailed otherwise."""
    if load.failed or load.unanswered or not load.answered:
        raise SideFailed(f"{load.failed} failed and {load.unanswered} unanswered of {load.offered} requests")
    return load
