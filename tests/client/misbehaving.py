"""A real HTTP server on a socket of its own that does to each request what a script says, and remembers all of them."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

PATIENCE = 600  # seconds; only ever reached when something is broken
VERSION = "ab" * 32
ANSWER = {
    "id": "classify-r1", "object": "list", "created": 1, "model": "t", "task_id": "t", "version": VERSION,
    "labels": ["negative", "positive"], "usage": {},
    "data": [{"index": 0, "label": "positive", "score": 0.9, "probs": [0.1, 0.9], "num_classes": 2}],
}  # fmt: skip
ACKNOWLEDGED = {
    "store_revision": {"epoch": "e1", "number": 7},
    "durability": {"durable": True, "fsync": "always", "replicas": 0},
}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Action = Callable[["Misbehaving", socket.socket], bool]  # whether the connection stays open


class Misbehaving:
    """Does one action of the script to each request, in the order of their arrival; then `always`."""

    def __init__(self, script: Sequence[Action] = (), always: Action | None = None) -> None:
        self.requests: list[Request] = []
        self.abandoned = threading.Event()  # a caller hung up on an action that was still under way
        self.arrived = threading.Event()  # a first request has
        self.stopping = threading.Event()
        self.most = 0  # connections at once
        self._script, self._always = list(script), always or answer()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
                self.most = max(self.most, len(self._open))
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while (request := _read(connection)) is not None:
                with self._lock:
                    self.requests.append(request)
                    action = self._script.pop(0) if self._script else self._always
                self.arrived.set()
                if not action(self, connection):
                    return
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _read(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    method, path, _ = first.split(" ")
    return Request(method, path, headers, body)


def _head(status: int, length: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(body: object = ANSWER, status: int = 200, **headers: str) -> Action:
    """A whole answer; `body` is JSON, or text as it is. Underscores in header names stand for hyphens."""
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()

    def act(_: Misbehaving, connection: socket.socket) -> bool:
        connection.sendall(_head(status, len(data), headers) + data)
        return True

    return act


def problem(status: int, code: str, **headers: str) -> Action:
    return answer({"code": code, "detail": "so it is", "request_id": "r9"}, status, **headers)


def reset(_: Misbehaving, connection: socket.socket) -> bool:
    """The request was read; then the connection is reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def hang_up(_: Misbehaving, connection: socket.socket) -> bool:
    """The connection is closed in an orderly way, without an answer."""
    return False


def half(_: Misbehaving, connection: socket.socket) -> bool:
    """A good answer breaks off in the middle of its body."""
    data = json.dumps(ANSWER).encode()
    connection.sendall(_head(200, len(data), {}) + data[: len(data) // 2])
    return False


def half_head(_: Misbehaving, connection: socket.socket) -> bool:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
    return False


def silent(server: Misbehaving, connection: socket.socket) -> bool:
    """No answer ever; tells when the caller hangs up."""
    if not connection.recv(1) and not server.stopping.is_set():
        server.abandoned.set()
    return False


def drip(server: Misbehaving, connection: socket.socket) -> bool:
    """A good answer, but a byte at a time: no single read takes long, all of them do."""
    data = json.dumps(ANSWER).encode()
    connection.sendall(_head(200, len(data), {}))
    for at in range(len(data)):
        if server.stopping.wait(0.02):
            return False
        try:
            connection.sendall(data[at : at + 1])
        except OSError:
            server.abandoned.set()
            raise
    return True


def late(seconds: float) -> Action:
    def act(_: Misbehaving, connection: socket.socket) -> bool:
        time.sleep(seconds)
        return answer()(_, connection)

    return act


def body(request: Request) -> Any:
    return json.loads(request.body)


@contextlib.contextmanager
def never_accepting() -> Iterator[tuple[str, socket.socket]]:
    """A server that listens and never accepts, its queue so full that nobody else gets a connection; and its URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as open_:
        for _ in range(64):
            filler = open_.enter_context(socket.socket())
            filler.settimeout(0.3)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}", listener
                return
        raise AssertionError(
            "this system gives a connection to all, however full a server's queue: nothing hangs here"
        )
