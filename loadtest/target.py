"""What a load is sent to: a server that is given, or one of our own with a store full of tasks.

Owns: the flags for it, the server's start and end, and which tasks it has. Must not know: what is sent, or measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shlex
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console

from loadtest import workload
from loadtest.bench.serving import wait_until_warm
from loadtest.faults.replicas import BACKBONES, shape_of
from loadtest.memory_watch import resident_bytes
from loadtest.prompts import fill_store
from loadtest.server_process import NotStarted, running_server

FAKE: Final = "tests.integration.fake_server"  # `promptmux serve` with a formula in the model's place

_PATIENCE: Final = 300.0  # seconds for a start: a busy machine is slow to load a model


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    url: str
    tasks: str  # as `workload.named_tasks` reads them
    key: str
    told: str  # what it is, for a person
    facts: dict[str, Any]  # and for a machine
    memory_of: str = ""  # a process id or the URL of /metrics; empty: its memory is not looked at
    metrics_key: str = ""  # for that URL

    @property
    def task_ids(self) -> list[str]:
        """Its tasks, one by one."""
        return workload.named_tasks(self.tasks)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags that choose a server."""
    given = parser.add_argument_group("a server that runs already")
    given.add_argument("--host", default="", help="its URL; without, one is started for the test")
    given.add_argument("--task-ids", default="", help="its tasks, separated by commas; or load:COUNT")
    given.add_argument(
        "--key", default=os.environ.get("PROMPTMUX_KEY", ""), help="an API key (PROMPTMUX_KEY)"
    )
    given.add_argument("--metrics", default="", help="URL of its /metrics, for its memory")
    given.add_argument(
        "--metrics-key", default=os.environ.get("PROMPTMUX_METRICS_KEY", ""),
        help="an API key of scope metrics, for that (PROMPTMUX_METRICS_KEY)",
    )  # fmt: skip
    own = parser.add_argument_group("a server of its own")
    own.add_argument("--tasks", type=int, default=100, help="how many tasks it has")
    own.add_argument("--kind", choices=("bare", "soft", "prefix"), default="prefix", help="of their prompts")
    own.add_argument("--backbone", choices=BACKBONES, default="minilm", help="fake: a formula, no model")
    own.add_argument("--server-flags", default="", help="more flags for `promptmux serve`, in one string")


def shown_command(module: str, arguments: Sequence[str]) -> str:
    """A command line for a report, which others read: without its keys and passwords."""
    shown = [re.sub(r"(://[^/@\s]*:)[^/@\s]+@", r"\1…@", one) for one in arguments]
    for at, one in enumerate(shown):
        flag, given, _ = one.partition("=")
        if flag in ("--key", "--metrics-key"):
            if given:
                shown[at] = f"{flag}=…"
            elif at + 1 < len(shown):
                shown[at + 1] = "…"
    return f"python -m {module} {shlex.join(shown)}".rstrip()


@contextlib.contextmanager
def target(options: argparse.Namespace, console: Console) -> Iterator[Target]:
    """The server, ready and warm, until the block ends.

    Raises:
        NotStarted: it did not start, or does not answer.

    """
    if options.host:
        yield _given(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"publishing {options.tasks:,} prompts ({options.kind}) …", highlight=False)
        ids = workload.task_ids(options.tasks)
        asyncio.run(fill_store(f"file://{folder}/store", ids, options.kind, shape_of(options.backbone)))
        flags = ["--store", f"file://{folder}/store", *options.server_flags.split()]
        fake = options.backbone == "fake"
        began = time.monotonic()
        with running_server(*flags, module=FAKE if fake else None, patience=_PATIENCE) as server:
            wait_until_warm(server)
            console.print(f"{server.url} ready in {time.monotonic() - began:.1f} s", highlight=False)
            facts = {
                "backbone": options.backbone,
                "tasks": options.tasks,
                "kind": options.kind,
                "flags": flags[2:],
            }
            told = f"own server, {options.tasks:,} tasks ({options.kind}), backbone {options.backbone}"
            yield Target(server.url, f"load:{options.tasks}", "", told, facts, str(server.process.pid))


def _given(options: argparse.Namespace) -> Target:
    url = options.host.rstrip("/")
    by_locust_alone = getattr(options, "no_open_loop", False)  # which speaks both
    if urlsplit(url).scheme not in (("http", "https") if by_locust_alone else ("http",)):
        print(
            f"--host {url}: an open loop speaks http:// only. Name the server behind its gateway, or leave the open "
            "loop out (python -m loadtest.run --no-open-loop)",
            file=sys.stderr,
        )
        raise SystemExit(2)
    if not options.task_ids:
        print("--host needs --task-ids: which tasks that server has", file=sys.stderr)
        raise SystemExit(2)
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=10):
            pass
    except OSError as error:
        raise NotStarted(f"{url} does not answer: {error}") from None
    if options.metrics:
        try:
            resident_bytes(options.metrics, options.metrics_key)
        except (OSError, ValueError) as error:
            raise NotStarted(f"--metrics: {error}") from None
    facts = {"host": url, "tasks": options.task_ids}
    return Target(url, options.task_ids, options.key, url, facts, options.metrics, options.metrics_key)
