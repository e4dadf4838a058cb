"""How a server process starts and ends."""

import json
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import Serve, ServerProcess, read_answer
from tests.integration.test_bad_input import request
from tests.server.fakes import FakeBackbone


def term(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGTERM)


def body(text: str) -> bytes:
    return request(json.dumps({"task_id": "sentiment", "input": text}).encode())


def test_it_greets_with_urls_tasks_and_an_example_that_works(server: ServerProcess) -> None:
    # The log's "ready" comes by another pipe: the greeting may be read a moment after it.
    server.wait_for(lambda: any('"task_id"' in line for line in server.stdout))
    shown = "\n".join(server.stdout)
    assert server.url in shown
    assert server.admin_url in shown
    assert "1 task (sentiment)" in shown
    assert "curl" in shown
    assert '"task_id": "sentiment"' in shown
    assert [event["event"] for event in server.log[:2]] == ["settings", "loading_backbone"]
    assert server.classify().status_code == 200


def test_sigterm_finishes_what_was_accepted_and_exits_0(serve: Serve, tmp_path: Path) -> None:
    server = serve("--drain-timeout", "120").ready()
    go = tmp_path / "go"
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(server.classify, f"until={go} {number}") for number in range(8)]
        server.wait_for(lambda: "promptmux_queue_rows 8.0" in httpx.get(f"{server.admin_url}/metrics").text)
        with server.connect() as waiting:
            waiting.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(waiting).startswith(b"HTTP/1.1 200")
            term(server)
            server.wait_for(lambda: bool(server.events("stopping")))
            waiting.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(waiting).startswith(b"HTTP/1.1 503")
        with server.connect() as late:
            late.sendall(body("too late"))
            answer = read_answer(late)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b'"draining"' in answer
        go.touch()
        assert [answer.result().status_code for answer in slow] == [200] * 8
    assert server.exit_code() == 0
    assert server.events("stopped")[0]["drained"] is True


def test_an_idle_server_ends_at_once_even_with_open_connections(serve: Serve) -> None:
    server = serve().ready()
    with server.connect() as idle, server.connect():
        idle.sendall(body("x"))
        assert read_answer(idle).startswith(b"HTTP/1.1 200")
        term(server)
        assert server.exit_code() == 0


@pytest.mark.parametrize("how", ["timeout", "second signal"])
def test_what_cannot_be_finished_is_answered_503(serve: Serve, how: str, tmp_path: Path) -> None:
    server = serve("--drain-timeout", "0.3" if how == "timeout" else "100").ready()
    with ThreadPoolExecutor(4) as pool:
        stuck = [pool.submit(server.classify, f"until={tmp_path / 'go'}") for _ in range(4)]
        server.wait_for(lambda: "promptmux_queue_rows 4.0" in httpx.get(f"{server.admin_url}/metrics").text)
        term(server)
        if how == "second signal":
            server.wait_for(lambda: bool(server.events("stopping")))
            term(server)
        answers = [answer.result() for answer in stuck]
        (tmp_path / "go").touch()
    assert [answer.status_code for answer in answers] == [503] * 4
    assert answers[0].json()["code"] == "draining"
    assert server.exit_code() == 1


def test_a_signal_while_it_starts_ends_it(serve: Serve) -> None:
    server = serve()
    server.wait_for(lambda: bool(server.events("settings")))
    term(server)
    assert server.exit_code() in (0, -signal.SIGTERM)


@pytest.mark.parametrize("flag", ["--port", "--admin-port"])
def test_a_taken_port_is_one_clear_line(serve: Serve, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve(flag, str(port))
        assert server.exit_code() == 2
    lines = [line for line in server.stderr if not line.startswith("{")]
    assert len(lines) == 1
    assert f"127.0.0.1:{port}" in lines[0]
    assert "Traceback" not in "\n".join(server.stderr)


@pytest.mark.parametrize("flag", ["--host", "--admin-host"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_keys_it_listens_on_loopback_only(serve: Serve, flag: str, host: str) -> None:
    server = serve(flag, host)
    assert server.exit_code() == 2
    assert "api_keys" in server.stderr[-1]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--api-keys", "nonsense"], "API key 1"),
        (["--api-keys-file", "/does/not/exist"], "api_keys_file"),
        (["--store", "s3://bucket"], "unknown kind of store"),
        (["--port", "x"], "port"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_settings_that_cannot_be_used(serve: Serve, flags: list[str], word: str) -> None:
    server = serve(*flags)
    assert server.exit_code() == 2
    assert word in server.stderr[-1]
    assert "Traceback" not in "\n".join(server.stderr)


def test_keys_by_variable_and_the_scopes_they_open(serve: Serve) -> None:
    from server.auth import new_key

    token, line = new_key("app", ["infer"])
    admin_token, admin_line = new_key("ops", ["admin"])
    server = serve(PROMPTMUX_API_KEYS=f"{line},{admin_line}").ready()
    assert server.classify().status_code == 401
    asked = {"task_id": "sentiment", "input": "x"}
    for key, public, admin in ((token, 200, 403), (admin_token, 403, 200), ("wrong", 401, 401)):
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.post(f"{server.url}/classify", json=asked, headers=headers).status_code == public
        assert httpx.get(f"{server.admin_url}/admin/tasks", headers=headers).status_code == admin
        assert httpx.get(f"{server.admin_url}/metrics", headers=headers).status_code == admin
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    everything = "\n".join(server.stderr + server.stdout)
    assert token not in everything
    assert line.rpartition(":")[2] not in everything


def test_seeds_are_published_once_and_a_deleted_one_stays_deleted(
    serve: Serve, tmp_path: Path, seeds: Path
) -> None:
    flags = ("--store", f"file://{tmp_path / 'mine'}")
    first = serve(*flags).ready()
    assert len(first.events("seeded")) == 1
    term(first)
    assert first.exit_code() == 0
    second = serve(*flags).ready()
    assert not second.events("seeded")
    assert httpx.delete(f"{second.admin_url}/admin/tasks/sentiment?force=1").status_code == 200
    term(second)
    second.exit_code()
    third = serve(*flags).ready()
    assert not third.events("seeded")
    assert third.classify().status_code == 404


def test_a_bad_seed_is_skipped(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    server = serve("--seed-dir", str(tmp_path)).ready()
    assert server.events("seed_skipped")[0]["file"] == "bad.safetensors"


def test_two_servers_share_a_store(serve: Serve, tmp_path: Path) -> None:
    from prompt_store import version_of
    from tests.server.fakes import prompt_bytes

    flags = ("--store", f"file://{tmp_path / 'shared'}")
    first, second = serve(*flags).ready(), serve(*flags).ready()
    data = prompt_bytes(favours=1)
    admin = f"{first.admin_url}/admin/tasks/sentiment"
    put = httpx.put(
        f"{admin}/versions/{version_of(data)}",
        content=data,
        headers={"Content-Type": "application/octet-stream"},
    )
    assert put.status_code == 201
    tag = httpx.get(f"{admin}/aliases/current").headers["etag"]
    moved = httpx.put(
        f"{admin}/aliases/current", json={"version": version_of(data)}, headers={"If-Match": tag}
    )
    assert moved.status_code == 200
    assert first.classify().json()["version"] == version_of(data)
    second.wait_for(lambda: second.classify().json()["version"] == version_of(data))


def test_rows_of_a_caller_that_hung_up_are_dropped(serve: Serve, tmp_path: Path) -> None:
    server = serve().ready()
    lanes, go = FakeBackbone.lanes, tmp_path / "go"
    blockers = [threading.Thread(target=server.classify, args=(f"until={go}",)) for _ in range(lanes)]
    metrics = f"{server.admin_url}/metrics"
    for at, blocker in enumerate(blockers, 1):
        blocker.start()
        server.wait_for(lambda at=at: f"promptmux_queue_rows {at}.0" in httpx.get(metrics).text)
    gone = [server.connect() for _ in range(10)]
    for connection in gone:
        connection.sendall(body("never read"))
    server.wait_for(lambda: f"promptmux_queue_rows {10 + lanes}.0" in httpx.get(metrics).text)
    for connection in gone:
        connection.close()
    server.wait_for(lambda: "promptmux_clients_gone_total 10.0" in httpx.get(metrics).text)
    go.touch()
    for blocker in blockers:
        blocker.join()
    server.wait_for(lambda: "promptmux_dropped_rows_total 10.0" in httpx.get(metrics).text)
    assert "promptmux_queue_rows 0.0" in httpx.get(metrics).text
    assert server.classify().status_code == 200


def test_a_store_that_is_away_leaves_it_alive_and_unready(serve: Serve, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the store's folder should be")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = serve("--store", f"file://{blocked / 'store'}", "--port", str(port))
    server.wait_for(lambda: bool(server.events("store_unavailable")))
    assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    for answer in (
        httpx.get(f"http://127.0.0.1:{port}/readyz"),
        httpx.post(f"http://127.0.0.1:{port}/classify", json={"task_id": "sentiment", "input": "x"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    blocked.unlink()
    server.ready()
    assert server.classify().status_code == 200


def test_a_variable_that_is_no_setting_is_pointed_out(serve: Serve) -> None:
    server = serve("--host", "0.0.0.0", PROMPTMUX_PROT="1")
    assert server.exit_code() == 2
    assert server.events("unknown_variables")[0]["names"] == ["PROMPTMUX_PROT"]


def test_a_server_that_leaves_says_so_and_answers_until_its_delay_is_over(serve: Serve) -> None:
    server = serve("--leave-delay", "8").ready()
    term(server)
    server.wait_for(lambda: bool(server.events("leaving")))
    ready = httpx.get(f"{server.url}/readyz")
    assert (ready.status_code, ready.json()["code"]) == (503, "draining")
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert server.classify().status_code == 200
    assert server.exit_code() == 0


def test_a_second_signal_ends_the_delay(serve: Serve) -> None:
    server = serve("--leave-delay", "60").ready()
    term(server)
    server.wait_for(lambda: bool(server.events("leaving")))
    term(server)
    assert server.exit_code() == 0
