"""A promptmux server that an experiment starts, asks, stops and starts again at the same addresses.

Owns: its command line, its life, and plain requests to it. Must not know: what is done to its store.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from loadtest.faults.replicas import BackboneName
from loadtest.ports import free_ports
from loadtest.server_process import Process, process, wait_for

FAKE: Final[BackboneName] = (
    "fake"  # the tests' backbone without torch: starts in a second, and the faults are not its business
)


class Reply(NamedTuple):
    """An HTTP answer; status 0: there was none, and `code` says why."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """What a failure is called."""
        if not self.status:
            return self.body.decode()
        try:
            return str(self.json.get("code", ""))
        except (ValueError, AttributeError):
            return ""


class Caller:
    """One keep-alive connection to a server; connects again by itself. For one thread."""

    def __init__(self, url: str, *, patience: float = 30.0) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "127.0.0.1", parts.port, timeout=patience
        )

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = "application/json",
        **headers: str,
    ) -> Reply:
        """One request, never sent twice. Headers by name, with _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request(
                method, path, body, {**sent, **({"Content-Type": kind} if body is not None else {})}
            )
            answer = self._connection.getresponse()
            return Reply(
                answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
            )
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Reply(0, {}, type(error).__name__.encode())

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FaultyServer:
    """`promptmux serve` with these flags; a context manager, which stops it at the end."""

    def __init__(
        self,
        backbone: BackboneName,
        *flags: str,
        module: str = "tests.integration.fake_server",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`module` is what runs in place of `promptmux serve` for the backbone FAKE, with these variables."""
        ports = free_ports(2)
        self.url, self.admin_url = (f"http://127.0.0.1:{port}" for port in ports)
        command = [module] if backbone == FAKE else ["promptmux", "serve", "--backbone", backbone]
        # Settings of whoever runs the experiment are not the experiment's.
        settings = [f"-u{name}" for name in os.environ if name.startswith("PROMPTMUX_")]
        self._command: Sequence[str] = (
            *("env", *settings),
            *(sys.executable, "-m", *command),
            *("--port", str(ports[0]), "--admin-port", str(ports[1]), "--log-format", "json"),
            *flags,
        )
        self._variables = dict(variables or {})
        self._stack = contextlib.ExitStack()
        self._process: Process | None = None
        self._said: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *, patience: float = 120.0) -> float:
        """Start it, and wait until it is ready; the seconds that took.

        Raises:
            NotStarted: with the end of its log.

        """
        began = time.monotonic()
        self._process = self._stack.enter_context(process(self._command, self._variables))
        try:
            wait_for(self._process, f"{self.url}/readyz", patience=patience, pause=0.02)
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - began

    def stop(self) -> None:
        """Stop it in order."""
        if self._process is not None:
            with contextlib.suppress(ValueError):
                self._said.append(self._process.said())
        self._stack.close()
        self._process = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.popen.poll() is None

    def said(self) -> str:
        """Everything that it has written, over all its starts."""
        return "".join([*self._said, self._process.said() if self._process is not None else ""])

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, the sum over all labels that are not given; 0 where it does not exist."""
        with Caller(self.admin_url) as caller:
            lines = caller.ask("GET", "/metrics").body.decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in lines:
            named, _, value = line.rpartition(" ")
            if named.partition("{")[0] == name and all(one in named for one in wanted):
                total += float(value)
        return total
