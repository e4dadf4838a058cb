from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import httpx
import pytest

from client import AdminClient, ApiError, Client, Receipt, Traffic, UnreachableError, Uploaded

Handler = Callable[[httpx.Request], httpx.Response]
VERSION = "ab" * 32


def _client(handler: Handler, *, key: str | None = None) -> Client:
    return Client("http://server", key=key, transport=httpx.MockTransport(handler))


def _admin(handler: Handler) -> AdminClient:
    return AdminClient("http://server", key="secret", transport=httpx.MockTransport(handler))


def _answer(request: httpx.Request) -> httpx.Response:
    many = json.loads(request.content)["input"]
    result = {"label": "positive", "score": 0.9, "probs": [0.1, 0.9], "num_classes": 2}
    return httpx.Response(
        200,
        json={
            "id": "r1", "object": "list", "created": 1, "model": "t", "task_id": "t", "version": VERSION,
            "labels": ["negative", "positive"], "data": [{"index": at, **result} for at in range(len(many))],
            "usage": {},
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "sent"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        (("a", "b"), [{"text": "a", "text_pair": "b"}]),
        ([("a", "b"), "c"], [{"text": "a", "text_pair": "b"}, "c"]),
    ],
)
def test_texts_and_pairs_are_sent_as_documented(texts: object, sent: list[object]) -> None:
    seen: list[dict[str, object]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        assert request.headers["authorization"] == "Bearer secret"
        return _answer(request)

    with _client(handler, key="secret") as client:
        answer = client.classify("t", texts, version="canary")  # type: ignore[arg-type]
    assert seen == [{"task_id": "t", "input": sent, "version": "canary"}]
    assert answer.version == VERSION
    assert [result.label for result in answer.results] == ["positive"] * len(sent)
    assert answer.results[0].labels is None
    assert not answer.results[0].truncated


def test_what_was_published_can_be_demanded() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["min_revision"] == "e1:7"
        answer = _answer(request)
        answer.headers["X-Store-Revision"] = "e1:9"
        return answer

    with _client(handler) as client:
        assert client.classify("t", "x", min_revision="e1:7").store_revision == "e1:9"


def test_errors_carry_their_code_and_request_id() -> None:
    problem = {
        "title": "Not found",
        "status": 404,
        "detail": "no such task",
        "code": "unknown_task",
        "request_id": "r9",
    }
    with _client(lambda _: httpx.Response(404, json=problem)) as client, pytest.raises(ApiError) as caught:
        client.classify("t", "x")
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (404, "unknown_task", "r9")
    assert str(caught.value) == "404 unknown_task: no such task (request r9)"


@pytest.mark.parametrize("body", ["<html>", "[]", ""])
def test_an_answer_that_is_no_promptmux_is_an_error_too(body: str) -> None:
    with (
        _client(lambda _: httpx.Response(502, text=body)) as client,
        pytest.raises(ApiError, match="502 http_error"),
    ):
        client.classify("t", "x")


def test_a_server_that_is_not_there() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    with (
        _client(handler) as client,
        pytest.raises(UnreachableError, match=r"http://server.*Connection refused"),
    ):
        client.is_ready()


def test_ready_or_not() -> None:
    for status, ready in ((200, True), (503, False)):
        with _client(lambda _, status=status: httpx.Response(status, json={})) as client:  # type: ignore[misc]
            assert client.is_ready() is ready


TASK = {
    "task_id": "t", "revision": 3,
    "aliases": {"current": {"targets": [{"version": VERSION, "weight": 1}], "revision": 2}},
    "versions": [{"version": VERSION, "size": 10, "published_at": 1.0, "method": "head-only", "labels": 2}],
}  # fmt: skip


ACKNOWLEDGED = {
    "store_revision": {"epoch": "e1", "number": 7},
    "durability": {"durable": True, "fsync": "always", "replicas": 0},
}
RECEIPT = Receipt("e1:7", durable=True, fsync="always", replicas=0)


def test_tasks_are_listed_page_by_page() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        after = request.url.params.get("after")
        name, following = {None: ("a", "a"), "a": ("b", None)}[after]
        return httpx.Response(200, json={"tasks": [{**TASK, "task_id": name}], "next": following})

    with _admin(handler) as admin:
        tasks = list(admin.tasks())
    assert [task.task_id for task in tasks] == ["a", "b"]
    assert tasks[0].aliases["current"].targets == ((VERSION, 1),)
    assert tasks[0].versions[0].size == 10


def test_uploads_go_to_the_path_of_their_digest() -> None:
    data = b"bytes"

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.method == "PUT"
        assert request.url.path == f"/admin/tasks/t/versions/{hashlib.sha256(data).hexdigest()}"
        assert request.headers["content-type"] == "application/octet-stream"
        assert request.content == data
        dry_run = request.url.params.get("dry_run") is not None
        return httpx.Response(201, json={"created": not dry_run, **({} if dry_run else ACKNOWLEDGED)})

    with _admin(handler) as admin:
        assert admin.put_version("t", data) == Uploaded(hashlib.sha256(data).hexdigest(), True, RECEIPT)
        assert admin.put_version("t", data, dry_run=True) == Uploaded(
            hashlib.sha256(data).hexdigest(), False, None
        )


@pytest.mark.parametrize(("known", "header"), [(True, ("if-match", '"2"')), (False, ("if-none-match", "*"))])
def test_an_alias_moves_by_compare_and_set(known: bool, header: tuple[str, str]) -> None:
    moves: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return (
                httpx.Response(200, json=TASK)
                if known
                else httpx.Response(404, json={"code": "unknown_task"})
            )
        moves.append(request)
        return httpx.Response(200, json=ACKNOWLEDGED)

    with _admin(handler) as admin:
        assert admin.move_alias("t", "current", VERSION) == RECEIPT
    assert [(move.url.path, json.loads(move.content)) for move in moves] == [
        ("/admin/tasks/t/aliases/current", {"version": VERSION})
    ]
    assert moves[0].headers[header[0]] == header[1]


def test_rollback_and_delete_name_what_they_mean() -> None:
    seen: list[tuple[str, str]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.path))
        return httpx.Response(200, json=ACKNOWLEDGED)

    with _admin(handler) as admin:
        assert admin.rollback("t", VERSION, revision=2) == RECEIPT
        assert admin.delete_version("t", VERSION) == RECEIPT
    assert seen == [("POST", "/admin/tasks/t/rollback"), ("DELETE", f"/admin/tasks/t/versions/{VERSION}")]


def test_a_split_is_made_watched_and_ended() -> None:
    other = "cd" * 32
    seen: list[tuple[str, str, object, str]] = []
    traffic = {
        "requests": 7,
        "errors": {"numerical_error": 2},
        "scores": {"texts": 5, "mean": 0.5, "buckets": []},
    }
    targets = [{"version": VERSION, "weight": 95}, {"version": other, "weight": 5, "traffic": traffic}]

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            alias = {"targets": targets, "revision": 2, "quarantined": {other: "numerical_error"}}
            return httpx.Response(200, json={**TASK, "aliases": {"current": alias}})
        seen.append(
            (request.method, request.url.path, json.loads(request.content), request.headers["if-match"])
        )
        return httpx.Response(200, json=ACKNOWLEDGED)

    with _admin(handler) as admin:
        assert admin.set_split("t", "current", [(VERSION, 95), (other, 5)], revision=2) == RECEIPT
        assert admin.promote("t", other, revision=3) == RECEIPT
        alias = admin.task("t").aliases["current"]
    assert seen == [
        (
            "PUT",
            "/admin/tasks/t/aliases/current",
            {"targets": [{"version": VERSION, "weight": 95}, {"version": other, "weight": 5}]},
            '"2"',
        ),
        ("POST", "/admin/tasks/t/promote", {"version": other, "alias": "current"}, '"3"'),
    ]
    assert alias.targets == ((VERSION, 95), (other, 5))
    assert alias.traffic == {other: Traffic(7, {"numerical_error": 2}, 0.5)}
    assert alias.quarantined == {other: "numerical_error"}


def test_a_request_key_is_sent_as_a_header() -> None:
    keys: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers.get("x-request-key"))
        return _answer(request)

    with _client(handler) as client:
        client.classify("t", "x", request_key="user-7")
        client.classify("t", "x")
    assert keys == ["user-7", None]


def test_other_failures_of_looking_an_alias_up_are_not_taken_for_absence() -> None:
    with _admin(lambda _: httpx.Response(503, json={"code": "store_unavailable"})) as admin:  # noqa: SIM117
        with pytest.raises(ApiError, match="store_unavailable"):
            admin.move_alias("t", "current", VERSION)


@pytest.mark.parametrize(
    ("task_id", "told"),
    [("my-task.v2", "my-task.v2"), ("Größe", "Gr%C3%B6%C3%9Fe"), ("a\r\nb: c", "a%0D%0Ab%3A%20c")],
)
def test_the_task_is_told_to_gateways_and_cannot_break_the_header(task_id: str, told: str) -> None:
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("x-task-id"))
        assert json.loads(request.content)["task_id"] == task_id
        return _answer(request)

    with _client(handler) as client:
        client.classify(task_id, "text")
        client.classify(task_id, "text", request_key="user-7")
    assert seen == [told, told]
