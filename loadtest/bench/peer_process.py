"""Peers in their own virtual environments and their own processes.

Owns the environments under `loadtest/peers/` (made on first use from the pinned `loadtest/bench/peers/<name>.txt`) and
the conversation with a worker: one JSON object a line, a request and its answer. A worker says first that it is ready
and with which versions. Sides take turns on the same cores, so a worker must sleep between requests (see `QUIET`).
Knows nothing of what a worker computes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.bench.options import ROOT
from loadtest.bench.rounds import SideFailed

ENVIRONMENTS = ROOT / "loadtest" / "peers"
REQUIREMENTS = Path(__file__).parent / "peers"
# Intel's OpenMP lets threads spin for 200 ms after their work, at the cost of the side whose turn is next; a
# millisecond keeps them awake within a forward, where sleeping would cost the peer. GNU's spin for about that long.
QUIET = {"KMP_BLOCKTIME": "1", "TOKENIZERS_PARALLELISM": "false"}


class PeerUnavailable(SideFailed):
    """The peer cannot be installed, started or asked, and why."""


def environment(name: str, console: Console) -> Path:
    """Return the Python of a peer's own environment; make that first if it is missing or its pins have changed.

    A peer without pins of its own runs in our environment: it is among our own development requirements.

    Raises:
        PeerUnavailable: with the last lines of what the installation said; the whole is in `install.log` beside.

    """
    pins = REQUIREMENTS / f"{name}.txt"
    if not pins.is_file():
        return Path(sys.executable)
    folder = ENVIRONMENTS / name
    python, log, done = folder / "bin" / "python", folder / "install.log", folder / ".installed"
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    if done.is_file() and done.read_text() == digest:
        return python
    console.print(f"{name}: installing into {folder} (once; minutes) …", markup=False)
    folder.mkdir(parents=True, exist_ok=True)
    # Our own pip installs there: one in each environment would take longer to make than the environment.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    steps = [
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)],
        [*pip, "install", "--requirement", str(pins)],
    ]
    said = ""
    for step in steps:
        ran = subprocess.run(step, capture_output=True, text=True, check=False)
        said += f"$ {' '.join(step)}\n{ran.stdout}{ran.stderr}\n"
        log.write_text(said, encoding="utf-8")
        if ran.returncode:
            raise PeerUnavailable(f"{name} cannot be installed: {_end(ran.stderr or ran.stdout)} (see {log})")
    done.write_text(digest)
    return python


class Worker:
    """A worker process. Use as a context manager; `versions` is what it said when it was ready."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        patience: float = 600.0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start `command` in the checkout's root; `patience` is how many seconds one answer may take."""
        self.name, self._patience = name, patience
        # Lives as long as the process; a pipe that nobody reads would stop a talkative peer.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env={**os.environ, **QUIET, **(variables or {})},
        )
        self._rest = b""
        try:
            self.versions: dict[str, str] = self._answer()["ready"]
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            PeerUnavailable: the worker refused, died, or did not answer in time.

        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerUnavailable(f"{self.name} is gone: {self._last_words()}") from None
        return self._answer()

    def close(self) -> None:
        """End the process: politely, by closing its input, or else by force."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        line = self._line()
        try:
            answer = json.loads(line)
        except ValueError:
            raise PeerUnavailable(f"{self.name} said what is no JSON: {line[:200]!r}") from None
        if not isinstance(answer, dict) or "error" in answer:
            said = answer.get("error") if isinstance(answer, dict) else answer
            raise PeerUnavailable(f"{self.name}: {said}")
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        until, pipe = time.monotonic() + self._patience, self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise PeerUnavailable(f"{self.name} has not answered for {self._patience:.0f} s")
            got = os.read(pipe, 1 << 16)
            if not got:
                raise PeerUnavailable(f"{self.name} ended: {self._last_words()}")
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._errors.seek(0)
        return f"exit code {self._process.returncode}, {_end(self._errors.read()) or 'without a word'}"


def _end(text: str) -> str:
    """The last lines of what a program said, in one."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-3:])[-500:]
