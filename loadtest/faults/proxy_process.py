"""A real HAProxy before some replicas: find or fetch it, write its configuration, start and end it, ask what it sees.

Owns: the configuration that a restart of replicas is to be lossless with, and the life of the one process that it
started. Must not know: how replicas start and end, or any experiment.
"""

from __future__ import annotations

import contextlib
import csv
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from loadtest.faults.fetched_program import find_program
from loadtest.server_process import NotStarted

REPLICA_HEADER: Final = "X-Replica"
"""Names the replica that gave an answer."""

_CONFIGURATION: Final = """\
global
    maxconn 4096
    nbthread 1
    stats socket "{folder}/{socket}" mode 600
    # Only a request that fits can be sent again to another replica; a longer one is passed on as it arrives.
    tune.bufsize 65536

defaults
    mode http
    timeout connect 1s
    timeout client 75s
    timeout server 75s
    timeout queue 5s
    # A check that is merely late, on a busy machine, is no reason to take a replica out; refused or 503 is.
    timeout check 2s
    option http-keep-alive
{retry}
frontend public
    bind 127.0.0.1:{port}
    default_backend replicas

backend replicas
    balance leastconn
    option httpchk
    http-check send meth GET uri /readyz hdr Host proxy
    http-check expect status 200
    http-response set-header {header} %s
{only}    default-server check inter 200ms fall 1 rise 1 slowstart 1s
{servers}
"""
# A POST /classify is a question: it changes nothing, and asked again it has the same answer, only the work is done
# twice. So what a draining replica refuses, and what one drops that is already closing, goes to another one. Admin
# writes are not behind this proxy, and anything but /classify and GET is never sent twice.
# Many clients send head and body apart; what is passed on before the body is there can only be sent once.
_RETRY: Final = """\
    retries 3
    option redispatch 1
    option http-buffer-request
    retry-on conn-failure empty-response 503
"""
# Not even a refused connection is tried again: whatever a replica does to a request is what its caller sees.
_ONCE: Final = "    retries 0\n    no option redispatch\n    retry-on none\n"
_ONLY: Final = "    http-request disable-l7-retry unless { path /classify } || METH_GET\n"


def find_haproxy() -> Path:
    """An HAProxy that runs: from PATH, else Debian's package.

    Raises:
        NoProgram: neither works.

    """
    return find_program("haproxy", packages=("haproxy",), inside="usr/sbin/haproxy", version_flag="-v")


class ProxyProcess:
    """One HAProxy on loopback before replicas at `ports`, by name. As a context manager it runs inside the block.

    Without `retries` it sends every request to one replica, once, and what comes of that is what its caller gets.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        ports: Mapping[str, int],
        *,
        retries: bool = True,
        program: Path | None = None,
    ) -> None:
        self.folder, self.port, self.names = folder, port, tuple(ports)
        self._program = program or find_haproxy()
        self._log = folder / "haproxy.log"
        self._popen: subprocess.Popen[bytes] | None = None
        servers = "\n".join(f"    server {name} 127.0.0.1:{at}" for name, at in ports.items())
        self._text = _CONFIGURATION.format(
            folder=folder.absolute(),
            socket="haproxy.sock",
            port=port,
            header=REPLICA_HEADER,
            retry=_RETRY if retries else _ONCE,
            only=_ONLY if retries else "",
            servers=servers,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything it has written."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._popen is None:
            raise RuntimeError("this proxy was never started")
        return self._popen.pid

    def start(self, *, patience: float = 10.0) -> None:
        """Start it, and wait until it takes connections.

        Raises:
            NotStarted: with the end of its log.

        """
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "haproxy.cfg"
        configuration.write_text(self._text)
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [str(self._program), "-db", "-f", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # ctrl-C is for the experiment, which then ends it in order
            )
        end = time.monotonic() + patience
        try:
            while not self._listens():
                if self._popen.poll() is not None or time.monotonic() > end:
                    raise NotStarted(f"HAProxy did not start:\n{self.log[-4000:]}")
                time.sleep(0.02)
        except BaseException:  # ctrl-C, too
            self.stop()
            raise

    def stop(self) -> None:
        """End it, with the connections that it has; nothing happens if it does not run."""
        if self._popen is None or self._popen.poll() is not None:
            return
        self._popen.send_signal(signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(10)
        finally:  # a second ctrl-C does not leave it behind
            self._popen.kill()
            self._popen.wait()

    def states(self) -> dict[str, str]:
        """What it makes of each replica: UP, DOWN, or a word with a fraction on the way between them."""
        return {name: row["status"] for name, row in self._statistics().items()}

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each replica: requests it was given, how often one was tried again, and went to another one."""
        names = {"requests": "stot", "retries": "wretr", "redispatches": "wredis"}
        return {
            replica: {name: int(row[column] or 0) for name, column in names.items()}
            for replica, row in self._statistics().items()
        }

    def open_requests(self) -> dict[str, int]:
        """Of each replica: requests that it has now and has not answered."""
        return {name: int(row["scur"] or 0) for name, row in self._statistics().items()}

    def wait_until(self, name: str, state: str, *, patience: float = 30.0) -> float:
        """Wait until it sees the replica so, which took the returned seconds. TimeoutError."""
        began = time.monotonic()
        while self.states().get(name) != state:
            if time.monotonic() - began > patience:
                raise TimeoutError(
                    f"the proxy does not see {name} {state}: {self.states()}\n{self.log[-2000:]}"
                )
            time.sleep(0.02)
        return time.monotonic() - began

    def _statistics(self) -> dict[str, dict[str, str]]:
        rows = csv.DictReader(self._ask("show stat").lstrip("# ").splitlines())
        return {row["svname"]: row for row in rows if row["svname"] in self.names}

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.folder.absolute() / "haproxy.sock"))
            connection.sendall(command.encode() + b"\n")
            said = b""
            while data := connection.recv(65536):
                said += data
        return said.decode()

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                # Another program may hold the port; then there is no socket to ask.
                return bool(self.states())
        except OSError:
            return False
