"""Some `promptmux serve` processes over one store: start, stop, kill and start anew each of them by itself.

Owns: their ports, which stay the same over restarts, their processes and what can be asked of them from outside. Must
not know: the store's kind, the proxy before them, or any experiment.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from prometheus_client.parser import text_string_to_metric_families

from loadtest.ports import free_ports
from loadtest.server_process import ROOT, NotStarted, Process, serve_command, wait_for
from prompt_store import BackboneRef

BackboneName = Literal["fake", "minilm"]
BACKBONES: Final[tuple[BackboneName, ...]] = ("fake", "minilm")


def shape_of(backbone: BackboneName) -> BackboneRef:
    """What a prompt for the backbone must fit."""
    if backbone == "fake":
        from tests.server.fakes import REF

        return REF
    from backbone import load_backbone  # heavy, and not needed for the other

    return load_backbone(backbone).shape


class Replica:
    """One server that can be ended and started anew. Not started by its constructor."""

    def __init__(self, name: str, ports: tuple[int, int], command: list[str], folder: Path) -> None:
        self.name, (self.port, self.admin_port) = name, ports
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self._command = [*command, "--port", str(self.port), "--admin-port", str(self.admin_port)]
        # As on machines of their own: what one keeps on its disk outlives its restarts, and no other sees it.
        self._command += ["--cache-dir", str(folder / f"{name}-cache")]
        self._log = folder / f"{name}.log"
        self._process: Process | None = None
        self.starts = 0

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.popen.poll() is None

    @property
    def process(self) -> Process:
        """The process, or the one that was last."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process

    def start(self, *, wait: bool = True, patience: float = 120.0) -> float:
        """Start it and, unless `wait` is False, wait until it is ready; the seconds that took.

        Raises:
            NotStarted: with the end of its log.

        """
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMUX_")}
        log = self._log.open(
            "w+", encoding="utf-8", errors="replace"
        )  # closed with the process that replaces it
        if self._process is not None:
            self._process.log.close()
        began = time.monotonic()
        popen = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=clean,
            start_new_session=True,  # ctrl-C is for the experiment, which then ends it in order
        )
        self._process = Process(popen, log, time.time())
        self.starts += 1
        if wait:
            self.wait(patience=patience)
        return time.monotonic() - began

    def wait(self, *, patience: float = 120.0) -> None:
        """Wait until it is ready.

        Raises:
            NotStarted: it ended, or `patience` seconds have passed; with the end of its log.

        """
        try:
            wait_for(self.process, f"{self.url}/readyz", patience=patience, pause=0.05)
        except NotStarted as error:
            self.kill()
            raise NotStarted(f"{self.name}: {error}") from None

    def stop(self, *, patience: float = 60.0) -> int:
        """Ask it to end as an operator does, wait, and give its exit code; -9 when it had to be killed."""
        self.ask_to_end()
        return self.ended(patience=patience)

    def ask_to_end(self) -> None:
        """Send SIGTERM, as an operator or an orchestrator does. A second one would hurry it."""
        if self.running:
            self.process.popen.send_signal(signal.SIGTERM)

    def ended(self, *, patience: float = 60.0) -> int:
        """Wait for its end, and give its exit code; -9 when it had to be killed."""
        try:
            return self.process.popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def kill(self) -> None:
        """End it as a crash does; nothing happens if it does not run."""
        if self._process is not None:
            self._process.popen.kill()
            self._process.popen.wait()

    def close(self) -> None:
        """End it, at once if it still runs, and let go of its log."""
        if self._process is not None:
            self.kill()
            self._process.log.close()

    def metrics(self, **labels: str) -> dict[str, float]:
        """Its metrics as they stand, by name; samples that differ in labels are added up.

        With `tier="device"`, of those that have a tier only the device's.
        """
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if any(sample.labels.get(name, value) != value for name, value in labels.items()):
                    continue
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    def connection(self, *, admin: bool = False) -> http.client.HTTPConnection:
        """A connection to its public or admin port, not yet opened."""
        return http.client.HTTPConnection("127.0.0.1", self.admin_port if admin else self.port, timeout=60)


@contextlib.contextmanager
def replicas(
    count: int, store_url: str, folder: Path, *, backbone: BackboneName, flags: tuple[str, ...] = ()
) -> Iterator[list[Replica]]:
    """`count` servers over the store, started at once; they are ended with the block.

    The real backbone has one lane in each. The fake one is the tests': it starts in a second and scores in no time.

    Raises:
        NotStarted: one of them, with the end of its log.

    """
    command = (
        [sys.executable, "-m", "tests.integration.fake_server"]
        if backbone == "fake"
        else serve_command("--backbone", backbone, "--threads", "1")
    )
    command += ["--store", store_url, "--log-format", "json", *flags]
    ports = free_ports(2 * count)
    made = [
        Replica(f"replica-{at}", (ports[2 * at], ports[2 * at + 1]), command, folder) for at in range(count)
    ]
    with contextlib.ExitStack() as stack:
        for (
            replica
        ) in made:  # the last resort: whatever is raised below, a second ctrl-C too, none is left behind
            stack.callback(replica.close)
        try:
            for replica in made:
                replica.start(wait=False)
            for replica in made:
                replica.wait()
            yield made
        finally:
            for replica in made:
                replica.ask_to_end()  # all at once, so that they end together
            for replica in made:
                if replica.running:
                    replica.ended()
