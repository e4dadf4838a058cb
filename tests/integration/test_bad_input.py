"""What a caller may send, and what it gets: over real sockets, against a real server process."""

import gzip
import itertools
import json
import socket
import time
from typing import Any

import httpx
import pytest

from tests.integration.conftest import ServerProcess, read_answer

SECRET = "xyzzy-plugh"
GOOD = b'{"task_id": "sentiment", "input": "fine"}'
JSON = {"Content-Type": "application/json"}


def request(body: bytes, *, path: str = "/classify", method: str = "POST", **headers: str) -> bytes:
    fields = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields.items() if v != "-")
    return head.encode() + b"\r\n" + body


def opened(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)


def expect(answer: bytes, status: int, code: str) -> None:
    got, body = opened(answer)
    assert (got, body["code"]) == (status, code)
    assert b"application/problem+json" in answer
    assert SECRET.encode() not in answer
    assert code == "invalid_http" or body["request_id"].encode() in answer.partition(b"\r\n\r\n")[0]
    assert body["error"]["code"] == status


def nested(depth: int) -> bytes:
    return b'{"task_id": "sentiment", "input": ' + b"[" * depth + b"]" * depth + b"}"


def text_of(inner: bytes) -> bytes:
    return b'{"task_id": "sentiment", "input": ' + inner + b"}"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (SECRET.encode(), 400, "invalid_json"),
        (text_of(b"NaN"), 400, "invalid_json"),
        (text_of(b"-Infinity"), 400, "invalid_json"),
        (text_of(b'"\\ud800"'), 400, "invalid_json"),
        (text_of(b'"\\udc00\\ud800"'), 400, "invalid_json"),
        (text_of(b'"\xff' + SECRET.encode() + b'"'), 400, "invalid_json"),
        (text_of(b'"\xed\xa0\x80"'), 400, "invalid_json"),
        (text_of(b'"a", "input": "b"'), 400, "invalid_json"),
        (text_of(b'"x"').decode().encode("utf-16"), 400, "invalid_json"),
        (nested(10_000), 400, "invalid_json"),
        (nested(500), 422, "not_offered"),
        (b"[" * 50_000, 400, "invalid_json"),
        (text_of(b"9" * 5000), 400, "invalid_json"),
        (text_of(b"1e999"), 400, "invalid_json"),
        (b"[]", 422, "invalid_request"),
        (b"null", 422, "invalid_request"),
        (b"{}", 422, "invalid_request"),
        (text_of(b"5"), 422, "invalid_request"),
        (text_of(b"null"), 422, "invalid_request"),
        (text_of(b'{"text": "' + SECRET.encode() + b'"}'), 422, "invalid_request"),
        (text_of(b'"x", "' + SECRET.encode() + b'": 1'), 422, "invalid_request"),
        (text_of(b'""'), 422, "empty_input"),
        (text_of(b'"  \\n "'), 422, "empty_input"),
        (text_of(b"[]"), 422, "empty_input"),
        (text_of(b"[1, 2, 3]"), 422, "not_offered"),
        (text_of(b"[" + b'"x",' * 50 + b'"x"]'), 413, "too_many_inputs"),
        (text_of(b'"' + b"a" * 20_001 + b'"'), 413, "text_too_long"),
        (text_of(b'"' + b"a" * 1_000_000 + b'"'), 413, "body_too_large"),
        (b'{"task_id": "' + SECRET.encode() + b'", "input": "x"}', 404, "unknown_task"),
        (b'{"task_id": "' + SECRET.encode() + b'!", "input": "x"}', 422, "invalid_task_id"),
        (b'{"task_id": "\\u0430", "input": "x"}', 422, "invalid_task_id"),
        (b'{"task_id": "' + b"a" * 10_000 + b'", "input": "x"}', 422, "invalid_task_id"),
    ],
    ids=itertools.count(),
)
def test_bad_bodies(server: ServerProcess, body: bytes, status: int, code: str) -> None:
    expect(server.raw(request(body)), status, code)


@pytest.mark.parametrize(
    "text", ["\x00", "a\x00\x00b", "😀" * 100, "\U0010ffff", "‮abc", "́" * 500, "a" * 20_000]
)
def test_any_unicode_is_text(server: ServerProcess, text: str) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"task_id": "sentiment", "input": text}, ensure_ascii=ascii_only).encode()
        if len(body) <= 100_000:
            status, answer = opened(server.raw(request(body)))
            assert (status, answer["data"][0]["num_classes"]) == (200, 2)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content_Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content_Type": "-"}, 415, "unsupported_media_type"),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"Content_Type": "application/json; charset=latin-1"}, 415, "unsupported_media_type"),
        ({"Content_Encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"Content_Encoding": "br"}, 415, "unsupported_media_type"),
        ({"Content_Type": "application/json; charset=utf-8"}, 200, ""),
        ({"Content_Type": "APPLICATION/JSON"}, 200, ""),
        ({"Content_Encoding": "identity"}, 200, ""),
    ],
)
def test_types_and_encodings(server: ServerProcess, headers: dict[str, str], status: int, code: str) -> None:
    answer = server.raw(request(GOOD, **headers))
    if code:
        expect(answer, status, code)
    else:
        assert opened(answer)[0] == status


def test_a_compressed_body_is_not_opened(server: ServerProcess) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    expect(server.raw(request(bomb, Content_Encoding="gzip")), 415, "unsupported_media_type")


@pytest.mark.parametrize("length", ["999999999999", "100001", "9" * 18])
def test_a_huge_content_length_is_refused_before_the_body(server: ServerProcess, length: str) -> None:
    expect(server.raw(request(b"", Content_Length=length)), 413, "body_too_large")


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "5, 6", "9" * 40])
def test_a_content_length_that_is_none_is_400(server: ServerProcess, length: str) -> None:
    expect(server.raw(request(GOOD, Content_Length=length)), 400, "invalid_http")


def test_a_caller_that_sends_first_still_reads_its_413(server: ServerProcess) -> None:
    body = json.dumps({"task_id": "sentiment", "input": "x" * 3_000_000})
    answer = httpx.post(f"{server.url}/classify", content=body, headers=JSON, timeout=600)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_flood_of_chunks_is_cut_off(server: ServerProcess) -> None:
    head = request(b"", Content_Length="-", Transfer_Encoding="chunked")
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    expect(server.raw(head, chunks=itertools.repeat(chunk, 20_000)), 413, "body_too_large")


def test_many_tiny_chunks_make_a_body(server: ServerProcess) -> None:
    head = request(b"", Content_Length="-", Transfer_Encoding="chunked")
    chunks = b"".join(b"1\r\n" + GOOD[at : at + 1] + b"\r\n" for at in range(len(GOOD))) + b"0\r\n\r\n"
    assert opened(server.raw(head + chunks))[0] == 200


def test_a_slow_body_is_given_up(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(request(GOOD)[:-10])
        expect(read_answer(connection), 408, "body_timeout")
        assert connection.recv(10) == b""


def test_a_body_that_drips_is_given_up(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(request(b"", Content_Length="10000"))
        connection.settimeout(0.05)
        answer = b""
        for _ in range(2000):
            try:
                connection.sendall(b" ")
                answer += connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer.endswith(b"}"):
                break
        expect(answer, 408, "body_timeout")


def test_a_caller_that_closes_in_its_body_harms_nobody(server: ServerProcess) -> None:
    for cut in (1, 20, 60, len(request(GOOD)) - 1):
        with server.connect() as connection:
            connection.sendall(request(GOOD)[:cut])
    with server.connect() as connection:
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )  # reset
        connection.sendall(request(GOOD)[:-5])
    assert server.classify().status_code == 200
    assert not server.events("request_failed")


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST /classify HTTP/9.9\r\n\r\n", b"\x00" * 50]
)
def test_what_is_no_http(server: ServerProcess, data: bytes) -> None:
    answer = server.raw(data, half_close=True)
    assert answer == b"" or opened(answer)[1]["code"] == "invalid_http"
    assert server.classify().status_code == 200


def test_an_endless_head_is_cut_off(server: ServerProcess) -> None:
    for start, part in (
        (b"POST /classify HTTP/1.1\r\n", b"X-Filler: " + b"x" * 1000 + b"\r\n"),
        (b"POST /classify HTTP/1.1\r\nX-Filler: ", b"x" * 1000),
        (b"GET /", b"x" * 1000),
    ):
        answer = server.raw(start, chunks=itertools.repeat(part, 10_000))
        assert answer == b"" or opened(answer)[1]["code"] == "head_too_large"
    headers = {f"X_{number}": "v" * 100 for number in range(200)}
    assert opened(server.raw(request(GOOD, **headers)))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "unknown_route"),
        ("POST", "/classify/", 404, "unknown_route"),
        ("POST", "//classify", 404, "unknown_route"),
        ("GET", "/%00", 404, "unknown_route"),
        ("GET", "/..%2f..%2fetc%2fpasswd", 404, "unknown_route"),
        ("GET", f"/{SECRET}?q={SECRET}", 404, "unknown_route"),
        ("GET", "/admin/tasks", 404, "unknown_route"),
        ("GET", "/metrics", 404, "unknown_route"),
        ("GET", "/classify", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_and_methods(
    server: ServerProcess, method: str, path: str, status: int, code: str
) -> None:
    expect(server.raw(request(b"", method=method, path=path)), status, code)


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    with server.connect() as connection:
        bodies = [
            json.dumps({"task_id": "sentiment", "input": "x", "request_id": f"r{n}"}).encode()
            for n in range(5)
        ]
        connection.sendall(b"".join(map(request, bodies)))
        answers = b""
        deadline = time.monotonic() + 60
        while answers.count(b"classify-r") < 5 and time.monotonic() < deadline:
            answers += connection.recv(65536)
        order = [answers.index(b"classify-r%d" % number) for number in range(5)]
        assert order == sorted(order)


def test_the_log_holds_no_input(server: ServerProcess) -> None:
    server.raw(request(text_of(b'"' + SECRET.encode() + b'"'), Authorization=f"Bearer {SECRET}"))
    server.raw(request(text_of(b'"explode ' + SECRET.encode() + b'"')))
    server.wait_for(lambda: bool(server.events("forward_failed")))
    assert not any(SECRET in line for line in server.stderr + server.stdout)
