import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.fakes import prompt_bytes

PATIENCE = 600  # seconds; only ever reached when something is broken


class ServerProcess:
    """A server in a process of its own, and its log."""

    def __init__(
        self, *flags: str, module: str = "tests.integration.fake_server", **environment: str
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMUX_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module.split(), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, **environment},
        )
        self.log: list[dict[str, Any]] = []
        self.stderr: list[str] = []
        self.stdout: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, into), daemon=True)
            for stream, into in ((self.process.stderr, self.stderr), (self.process.stdout, self.stdout))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, into: list[str]) -> None:
        for line in stream:
            into.append(line.rstrip("\n"))
            if line.startswith("{"):
                self.log.append(json.loads(line))

    def ready(self) -> "ServerProcess":
        self.wait_for(lambda: bool(self.events("ready")))
        self.url: str = self.events("ready")[0]["url"]
        self.admin_url: str = self.events("ready")[0]["admin_url"]
        return self

    def wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert self.process.poll() is None, "\n".join(self.stderr)
            assert time.monotonic() < deadline, "\n".join(self.stderr)
            time.sleep(0.01)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line.get("event") == name]

    def exit_code(self) -> int:
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def stop(self) -> None:
        self.process.kill()
        self.exit_code()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()

    def raw(self, data: bytes, *, half_close: bool = False, chunks: Iterator[bytes] | None = None) -> bytes:
        """Send bytes as they are, and everything that comes back until the server closes or has answered."""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                for chunk in chunks or ():
                    connection.sendall(chunk)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it may answer and close before everything was sent
            return read_answer(connection)

    def connect(self) -> socket.socket:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return socket.create_connection((host, int(port)), timeout=PATIENCE)

    def classify(self, text: object = "some words", **more: Any) -> httpx.Response:
        body = {"task_id": "sentiment", "input": text, **more}
        return httpx.post(f"{self.url}/classify", json=body, timeout=PATIENCE)


def read_answer(connection: socket.socket) -> bytes:
    """One whole answer, or what there is when the server closes."""
    answer = b""
    while True:
        head, end, body = answer.partition(b"\r\n\r\n")
        if end:
            fields = [line.partition(b":") for line in head.lower().split(b"\r\n")]
            length = next((int(value) for name, _, value in fields if name == b"content-length"), 0)
            if len(body) >= length:
                return answer
        try:
            data = connection.recv(65536)
        except OSError:
            return answer
        if not data:
            return answer
        answer += data


Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="package")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "sentiment.safetensors").write_bytes(prompt_bytes())
    return folder


@pytest.fixture(scope="package")
def serve_package(tmp_path_factory: pytest.TempPathFactory, seeds: Path) -> Iterator[Serve]:
    started: list[ServerProcess] = []

    def start(*flags: str, **more: Any) -> ServerProcess:
        store = f"file://{tmp_path_factory.mktemp('store') / 's'}"
        server = ServerProcess(
            "--port", "0", "--admin-port", "0", "--store", store, "--seed-dir", str(seeds), *flags, **more
        )  # fmt: skip
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def serve(serve_package: Serve) -> Serve:
    """Start a server; it is killed at the end."""
    return serve_package


@pytest.fixture(scope="package")
def server(serve_package: Serve) -> ServerProcess:
    """One server for all tests that only ask."""
    return serve_package(
        "--max-body-bytes", "100000", "--max-text-chars", "20000", "--max-inputs", "50", "--body-timeout", "1.5",
        "--max-prompt-bytes", "100000",
    ).ready()  # fmt: skip
