"""Servers as processes of their own: start one, wait until it answers, look at what it uses, end it.

Owns the life of a process and of its children; a load test leaves none behind. Standard library only. Knows nothing of
what a server serves.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]


class NotStarted(RuntimeError):
    """A server ended or did not answer in time; the message ends with its log."""


@dataclass(frozen=True)
class Process:
    """A process that runs."""

    popen: subprocess.Popen[str]
    log: IO[str]
    began: float  # time.time()

    @property
    def pid(self) -> int:
        """Its id."""
        return self.popen.pid

    def said(self) -> str:
        """Everything it has written to standard output and standard error."""
        self.log.seek(0)
        return self.log.read()

    def cpu_seconds(self) -> float:
        """Processor time it has used, without that of its children; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory that it holds; 0 where the system does not tell."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0


@contextlib.contextmanager
def process(command: Sequence[str], variables: Mapping[str, str] | None = None) -> Iterator[Process]:
    """Run `command` in the checkout's root until the block ends; it is asked to end, and made to after a minute."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        began = time.time()
        popen = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(variables or {})},
            start_new_session=True,  # so that its children can be ended with it
        )
        try:
            yield Process(popen, log, began)
        finally:
            popen.send_signal(signal.SIGTERM)
            try:
                popen.wait(60)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)


def wait_for(running: Process, url: str, *, patience: float, pause: float = 0.1) -> None:
    """Wait until GET `url` answers 200.

    Raises:
        NotStarted: the process ended, or `patience` seconds have passed.

    """
    end = time.monotonic() + patience
    while not _answers(url):
        if running.popen.poll() is not None or time.monotonic() > end:
            raise NotStarted(f"the server did not start:\n{running.said()[-4000:]}")
        time.sleep(pause)


def leave_on_sigterm() -> None:
    """Let SIGTERM end this program as ctrl-C does, so that what it has started ends with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@dataclass(frozen=True)
class Running:
    """A promptmux server that answers."""

    url: str
    admin_url: str
    process: Process


def serve_command(*flags: str, module: str | None = None) -> list[str]:
    """The command line of `promptmux serve`, or of a module that takes its flags."""
    return [sys.executable, "-m", *([module] if module else ["promptmux", "serve"]), *flags]


@contextlib.contextmanager
def running_server(*flags: str, patience: float = 120.0, module: str | None = None) -> Iterator[Running]:
    """Run `promptmux serve`, or a module that takes its flags, on free loopback ports until the block ends.

    Raises:
        NotStarted: with the end of its log.

    """
    with process(serve_command("--port", "0", "--admin-port", "0", *flags, module=module)) as started:
        end = time.monotonic() + patience
        while (urls := _urls(started.said())) is None:
            if started.popen.poll() is not None or time.monotonic() > end:
                raise NotStarted(f"the server did not start:\n{started.said()[-4000:]}")
            time.sleep(0.1)
        wait_for(started, f"{urls[0]}/readyz", patience=patience)
        yield Running(*urls, started)


def _urls(said: str) -> tuple[str, str] | None:
    found = [re.search(rf"^\s+{name}\s+(http://\S+)", said, re.M) for name in ("public", "admin")]
    return (found[0][1], found[1][1]) if found[0] and found[1] else None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
