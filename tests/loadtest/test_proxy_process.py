from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.faults.fetched_program import NoProgram, find_program
from loadtest.faults.proxy_process import REPLICA_HEADER, ProxyProcess, find_haproxy
from loadtest.ports import free_ports
from loadtest.server_process import NotStarted


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return find_haproxy()
    except NoProgram as error:
        pytest.skip(f"NO HAPROXY, THE PROXY IS NOT TESTED: {error}")


class Server(ThreadingHTTPServer):
    """Answers 200, or what `status` says; drops every request instead while `drops` is set."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nobody need read of a proxy that resets a connection."""

    status = 200
    drops = False
    ready = True
    asked = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._answer(200 if self.server.ready else 503)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        if self.server.drops:
            self.close_connection = True
        else:
            self._answer(self.server.status)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(port: int) -> Iterator[Server]:
    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def post(proxy: ProxyProcess, path: str = "/classify", body: bytes = b"{}") -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader(REPLICA_HEADER)
    finally:
        connection.close()


@pytest.fixture
def ports() -> list[int]:
    return free_ports(3)


def test_both_replicas_are_used_and_named(tmp_path: Path, program: Path, ports: list[int]) -> None:
    with (
        serving(ports[1]),
        serving(ports[2]),
        ProxyProcess(
            tmp_path / "a folder", ports[0], {"one": ports[1], "two": ports[2]}, program=program
        ) as proxy,
    ):
        for name in ("one", "two"):
            proxy.wait_until(name, "UP")
        answers = [post(proxy) for _ in range(8)]
        assert {status for status, _ in answers} == {200}
        assert {name for _, name in answers} == {"one", "two"}
        assert sum(count["requests"] for count in proxy.counts().values()) >= 8
        pid = proxy.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("fault", ["refuses", "drops", "is gone"])
def test_what_one_replica_cannot_answer_another_one_does(
    tmp_path: Path, program: Path, ports: list[int], fault: str
) -> None:
    with serving(ports[1]) as bad, serving(ports[2]):
        bad.status, bad.drops = 503 if fault == "refuses" else 200, fault == "drops"
        if fault == "is gone":
            bad.shutdown()
            bad.server_close()
        with ProxyProcess(tmp_path, ports[0], {"bad": ports[1], "good": ports[2]}, program=program) as proxy:
            assert [post(proxy) for _ in range(8)] == [(200, "good")] * 8


def test_only_a_question_is_asked_twice(tmp_path: Path, program: Path, ports: list[int]) -> None:
    with serving(ports[1]) as one, serving(ports[2]) as two:
        one.status = two.status = 503
        replicas = {"one": ports[1], "two": ports[2]}
        with ProxyProcess(tmp_path / "tries", ports[0], replicas, program=program) as proxy:
            assert post(proxy, "/elsewhere")[0] == 503
            assert one.asked + two.asked == 1
            assert post(proxy)[0] == 503
            assert one.asked + two.asked > 2
        before = one.asked + two.asked
        with ProxyProcess(tmp_path / "once", ports[0], replicas, retries=False, program=program) as proxy:
            assert post(proxy)[0] == 503
            assert one.asked + two.asked == before + 1


@pytest.mark.parametrize("fault", ["drops", "is gone"])
def test_without_retries_nothing_is_sent_twice(
    tmp_path: Path, program: Path, ports: list[int], fault: str
) -> None:
    replicas = {"bad": ports[1], "good": ports[2]}
    with serving(ports[1]) as bad, serving(ports[2]) as good:
        bad.drops = fault == "drops"
        if fault == "is gone":
            bad.shutdown()
            bad.server_close()
        with ProxyProcess(tmp_path, ports[0], replicas, retries=False, program=program) as proxy:
            # At once: after its first check the proxy leaves out one that is gone.
            statuses = [post(proxy)[0] for _ in range(4)]
            assert good.asked == statuses.count(200)
            counts = proxy.counts()
    assert bad.asked == (statuses.count(502) if fault == "drops" else 0)
    assert {count[name] for count in counts.values() for name in ("retries", "redispatches")} == {0}


def test_it_sees_an_unready_replica_and_its_return(tmp_path: Path, program: Path, ports: list[int]) -> None:
    with (
        serving(ports[1]) as replica,
        ProxyProcess(tmp_path, ports[0], {"one": ports[1]}, program=program) as proxy,
    ):
        proxy.wait_until("one", "UP")
        replica.ready = False
        proxy.wait_until("one", "DOWN")
        assert post(proxy)[0] == 503
        replica.ready = True
        proxy.wait_until("one", "UP")
        with pytest.raises(TimeoutError, match="UP"):
            proxy.wait_until("one", "DOWN", patience=0.1)


def test_ctrl_c_while_it_starts_leaves_none_behind(
    tmp_path: Path, program: Path, ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ProxyProcess(tmp_path, ports[0], {"one": ports[1]}, program=program)

    def interrupt() -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(proxy, "states", interrupt)
    with pytest.raises(KeyboardInterrupt):
        proxy.start()
    with pytest.raises(ProcessLookupError):
        os.kill(proxy.pid, 0)


def test_a_taken_port_is_told_with_the_log(tmp_path: Path, program: Path, ports: list[int]) -> None:
    with serving(ports[0]), pytest.raises(NotStarted, match="HAProxy did not start"):
        ProxyProcess(tmp_path, ports[0], {"one": ports[1]}, program=program).start(patience=3)


def test_a_program_that_nobody_has_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoProgram, match=r"no surely-not-here on PATH .*Debian's surely-not-here: "):
        find_program(
            "surely-not-here", packages=("surely-not-here",), inside="bin/surely-not-here", version_flag="-v"
        )
