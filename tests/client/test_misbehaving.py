"""Both clients against a real server that misbehaves on a script."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from client import (
    ApiError,
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidCall,
    OutcomeUnknown,
    Receipt,
    Retries,
    UnreachableError,
)
from tests.client.conftest import Asker
from tests.client.misbehaving import (
    ACKNOWLEDGED,
    PATIENCE,
    VERSION,
    Action,
    Misbehaving,
    answer,
    body,
    drip,
    half,
    half_head,
    hang_up,
    late,
    problem,
    reset,
    silent,
)

PASSING = {
    "429": problem(429, "overloaded", Retry_After="1"),
    "503": problem(503, "draining", Retry_After="1"),
    "502": answer("<html>Bad Gateway</html>", 502),
    "504": answer("", 504),
    "408": problem(408, "body_timeout", Connection="close"),
    "reset": reset,
    "hang-up": hang_up,
    "half": half,
    "half-head": half_head,
}
LASTING = [(400, "invalid_json"), (401, "unauthenticated"), (404, "unknown_task"), (422, "empty_input"),
           (412, "revision_lost"), (500, "internal_error"), (500, "numerical_error")]  # fmt: skip
RECEIPT = Receipt("e1:7", durable=True, fsync="always", replicas=0)


def classify(client: Any) -> Any:
    return client.classify("t", "a text")


def rollback(client: Any) -> Any:
    return client.rollback("t", VERSION, revision=6)


def delete(client: Any) -> Any:
    return client.delete_version("t", VERSION)


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_asked_again(ask: Asker, name: str) -> None:
    with Misbehaving([PASSING[name]]) as server:
        assert ask(server.url, classify).results[0].label == "positive"
    first, second = server.requests
    assert first == second  # the same in its request id, too: what finds all tries in a server's log
    assert body(first) == {"task_id": "t", "input": ["a text"]}
    assert len(ask.waits) == 1


@pytest.mark.parametrize(("status", "code"), LASTING)
def test_what_lasts_is_not_asked_again(ask: Asker, status: int, code: str) -> None:
    with Misbehaving([problem(status, code)]) as server, pytest.raises(ApiError) as caught:
        ask(server.url, classify)
    error = caught.value
    assert len(server.requests) == error.tries == 1
    assert (error.status, error.code, error.request_id, error.retry_after) == (status, code, "r9", None)
    assert str(error) == f"{status} {code}: so it is (request r9)"
    assert error.advice


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"Retry_After": "7"}, 7),
        ({"Retry_After": "Sat, 21 Nov 2026 10:00:09 GMT", "Date": "Sat, 21 Nov 2026 10:00:04 GMT"}, 5),
        ({"Retry_After": "soon"}, 0),
        ({}, 0),
    ],
)
def test_the_server_says_how_long_to_wait(ask: Asker, headers: dict[str, str], least: float) -> None:
    with Misbehaving([problem(503, "not_ready", **headers)]) as server:
        ask(server.url, classify)
    (wait,) = ask.waits
    assert least <= wait <= least + Retries().first_wait


def test_it_gives_up(ask: Asker) -> None:
    with (
        Misbehaving(always=problem(429, "overloaded", Retry_After="2")) as server,
        pytest.raises(ApiError) as caught,
    ):
        ask(server.url, classify)
    assert (caught.value.retry_after, caught.value.tries) == (2, Retries().tries)
    assert len(server.requests) == Retries().tries


def test_it_waits_for_nothing_that_it_cannot_see(ask: Asker) -> None:
    for more, said in (({"timeout": 9.0}, "9"), ({"timeout": None}, "61")):
        busy = problem(503, "not_ready", Retry_After=said)
        with Misbehaving([busy]) as server, pytest.raises(ApiError, match="not_ready"):
            ask(server.url, classify, **more)
        assert len(server.requests) == 1
    assert ask.waits == []


def test_retries_can_be_switched_off(ask: Asker) -> None:
    with Misbehaving([reset]) as server, pytest.raises(UnreachableError):
        ask(server.url, classify, retries=Retries(tries=1))
    assert len(server.requests) == 1


@pytest.mark.parametrize("action", [silent, drip])
@pytest.mark.parametrize("where", ["client", "call"])
def test_time_is_up(ask: Asker, action: Action, where: str) -> None:
    options = {"timeout": 1.0} if where == "client" else {}
    given = {"timeout": 1.0} if where == "call" else {}
    with Misbehaving([action]) as server:
        with pytest.raises(DeadlineExceeded, match=r"no answer in time \(1 s, tries: 1\)") as caught:
            ask(server.url, lambda client: client.classify("t", "a text", **given), **options)
        # Its connection is closed: the server notices, and drops the work.
        assert server.abandoned.wait(PATIENCE)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.request_id == server.requests[0].headers["x-request-id"]


def test_time_is_one_for_all_tries(ask: Asker) -> None:
    with Misbehaving([problem(503, "draining"), silent]) as server:
        with pytest.raises(DeadlineExceeded, match="tries: 2; the try before: 503 draining"):
            ask(server.url, classify, timeout=1.0)
        assert server.abandoned.wait(PATIENCE)
    with Misbehaving() as server, pytest.raises(DeadlineExceeded, match="no time to ask"):
        ask(server.url, lambda client: client.classify("t", "a text", timeout=0))
    assert not server.requests


def test_slow_is_not_wrong(ask: Asker) -> None:
    with Misbehaving([late(0.2)]) as server:
        assert ask(server.url, classify, timeout=None).version == VERSION
    assert len(server.requests) == 1


def test_nobody_is_there(ask: Asker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(UnreachableError, match=url) as caught:
        ask(url, classify)
    assert caught.value.tries == Retries().tries
    # Nothing was sent: even a delete is tried again, and it is known that nothing came of it.
    with pytest.raises(UnreachableError):
        ask(url, delete, admin=True)
    assert len(ask.waits) == 2 * (Retries().tries - 1)


@pytest.mark.parametrize("name", ["reset", "hang-up", "half", "half-head", "502", "503", "504"])
def test_a_delete_is_not_sent_twice(ask: Asker, name: str) -> None:
    with (
        Misbehaving([PASSING[name]], always=answer(ACKNOWLEDGED)) as server,
        pytest.raises(OutcomeUnknown, match="whether it took effect is not known") as caught,
    ):
        ask(server.url, delete, admin=True)
    assert len(server.requests) == caught.value.tries == 1
    assert isinstance(caught.value.__cause__, ApiError | UnreachableError)


@pytest.mark.parametrize("refusal", [PASSING["429"], PASSING["408"], problem(503, "not_ready")])
def test_a_delete_that_was_refused_is_sent_again(ask: Asker, refusal: Action) -> None:
    with Misbehaving([refusal], always=answer(ACKNOWLEDGED)) as server:
        assert ask(server.url, delete, admin=True) == RECEIPT
    assert len(server.requests) == 2


@pytest.mark.parametrize("name", ["reset", "hang-up", "half", "503"])
def test_a_guarded_move_is_sent_again_with_its_guard(ask: Asker, name: str) -> None:
    moved = problem(412, "revision_conflict")
    with Misbehaving([PASSING[name]], always=answer(ACKNOWLEDGED)) as server:
        assert ask(server.url, rollback, admin=True) == RECEIPT
    assert [request.headers["if-match"] for request in server.requests] == ['"6"', '"6"']
    # Moved by somebody else, or by the try whose answer was lost: nobody can tell.
    with Misbehaving([PASSING[name], moved]) as server, pytest.raises(OutcomeUnknown) as caught:
        ask(server.url, rollback, admin=True)
    assert isinstance(caught.value.__cause__, ApiError)
    assert caught.value.__cause__.code == "revision_conflict"
    # Without a lost answer it is known.
    with Misbehaving([PASSING["429"], moved]) as server, pytest.raises(ApiError, match="revision_conflict"):
        ask(server.url, rollback, admin=True)


def test_an_upload_is_sent_again(ask: Asker) -> None:
    created = answer({"created": False, **ACKNOWLEDGED})
    with Misbehaving([reset], always=created) as server:
        assert (
            ask(server.url, lambda client: client.put_version("t", b"bytes"), admin=True).receipt == RECEIPT
        )
    assert [request.body for request in server.requests] == [b"bytes", b"bytes"]


def test_ready_asks_once(ask: Asker) -> None:
    with Misbehaving([problem(503, "not_ready"), answer({})]) as server:
        assert ask(server.url, lambda client: client.is_ready()) is False
        assert ask(server.url, lambda client: client.is_ready()) is True
    assert len(server.requests) == 2
    with Misbehaving([reset]) as server, pytest.raises(UnreachableError):
        ask(server.url, lambda client: client.is_ready())
    assert len(server.requests) == 1


@pytest.mark.parametrize("page", ["<html>", "[]", "{}", '{"data": [{}]}', "\xff"])
def test_what_is_no_promptmux_is_told(ask: Asker, page: str) -> None:
    with Misbehaving([answer(page)]) as server, pytest.raises(InvalidAnswer, match="/classify with 200"):
        ask(server.url, classify)


def test_an_outage_is_not_made_worse(ask: Asker) -> None:
    calls, retries = 30, Retries(burst=5)

    def call_often(client: Any) -> Any:
        async def later() -> None:
            for _ in range(calls):
                with pytest.raises(ApiError):
                    await client.classify("t", "x")

        if ask.kind == "async":
            return later()
        for _ in range(calls):
            with pytest.raises(ApiError):
                client.classify("t", "x")
        return None

    with Misbehaving(always=problem(503, "draining")) as server:
        ask(server.url, call_often, retries=retries)
    assert len(server.requests) == calls + retries.burst


def test_headers_for_gateways_and_canaries(ask: Asker) -> None:
    with Misbehaving() as server:
        ask(server.url, lambda client: client.classify("nli", ("a", "b"), request_key="user-7"), key="secret")
    (request,) = server.requests
    assert body(request)["input"] == [{"text": "a", "text_pair": "b"}]
    sent = {name: request.headers[name] for name in ("x-task-id", "x-request-key", "authorization")}
    assert sent == {"x-task-id": "nli", "x-request-key": "user-7", "authorization": "Bearer secret"}


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.classify("t", ("a", "b", "c")),
        lambda client: client.classify("t", [1]),
        lambda client: client.classify("t", "half a pair: \ud83d"),
        lambda client: client.classify("t", "x", request_key="two\nlines"),
        lambda client: client.classify("t", "x", request_key="ключ"),
        lambda client: client.classify("t", "x", timeout=float("nan")),
    ],
)
def test_what_cannot_be_sent_is_not_sent(ask: Asker, call: Any) -> None:
    with Misbehaving() as server, pytest.raises(InvalidCall):
        ask(server.url, call)
    assert not server.requests


@pytest.mark.parametrize("task_id", ["", ".", "..", "../tasks"])
def test_no_name_leads_to_another_path(ask: Asker, task_id: str) -> None:
    with Misbehaving(always=answer(ACKNOWLEDGED)) as server:
        if task_id == "../tasks":
            ask(server.url, lambda client: client.delete_task(task_id), admin=True)
            assert [request.path for request in server.requests] == ["/admin/tasks/..%2Ftasks"]
        else:
            with pytest.raises(InvalidCall):
                ask(server.url, lambda client: client.delete_task(task_id), admin=True)


@pytest.mark.parametrize(
    "options", [{"key": "secret\n"}, {"key": ""}, {"timeout": 0}, {"timeout": float("nan")}]
)
def test_bad_options_are_told_without_secrets(ask: Asker, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidCall) as caught:
        ask("http://127.0.0.1:1", classify, **options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://[::"])
def test_bad_addresses_are_told(ask: Asker, url: str) -> None:
    with pytest.raises(InvalidCall, match=url.replace("[", r"\[").split("//")[0]):
        ask(url, classify)


def test_passwords_of_addresses_are_not_told(ask: Asker) -> None:
    with pytest.raises(UnreachableError) as caught:
        ask("http://somebody:password@127.0.0.1:1", classify, retries=Retries(tries=1))
    assert "password" not in str(caught.value)


def test_many_threads_share_one_client() -> None:
    with Misbehaving(always=late(0.005)) as server, Client(server.url, connections=4) as client:
        with ThreadPoolExecutor(24) as threads:
            answers = list(threads.map(lambda _: client.classify("t", "x"), range(240)))
        assert len(answers) == len(server.requests) == 240
        assert 2 <= server.most <= 4


def test_who_finds_every_connection_in_use_waits_no_longer_than_its_time(ask: Asker) -> None:
    with Misbehaving([silent]) as server:
        if ask.kind == "sync":
            with Client(server.url, connections=1, timeout=4.0) as client, ThreadPoolExecutor(1) as threads:
                held = threads.submit(client.classify, "t", "x")
                assert server.arrived.wait(PATIENCE)
                with pytest.raises(DeadlineExceeded, match="are all connections of this client in use"):
                    client.classify("t", "x", timeout=0.1)
                with pytest.raises(DeadlineExceeded):
                    held.result(PATIENCE)
                assert client.classify("t", "x").version == VERSION  # a place that was given up is free again
            return

        async def both() -> None:
            async with AsyncClient(server.url, connections=1, timeout=4.0) as client:
                held = asyncio.create_task(client.classify("t", "x"))
                assert await asyncio.to_thread(server.arrived.wait, PATIENCE)
                with pytest.raises(DeadlineExceeded, match="are all connections of this client in use"):
                    await client.classify("t", "x", timeout=0.1)
                with pytest.raises(DeadlineExceeded):
                    await held
                assert (await client.classify("t", "x")).version == VERSION

        asyncio.run(both())


async def test_a_call_that_is_cancelled_leaves_no_connection_behind() -> None:
    with Misbehaving([silent]) as server:
        async with AsyncClient(server.url, connections=1) as client:
            call = asyncio.create_task(client.classify("t", "x"))
            assert await asyncio.to_thread(server.arrived.wait, PATIENCE)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            # The server sees the caller go, and the only place in the pool is free again.
            assert await asyncio.to_thread(server.abandoned.wait, PATIENCE)
            assert (await client.classify("t", "x")).version == VERSION
        assert len(server.requests) == 2


async def test_a_call_that_is_cancelled_while_it_waits_is_not_sent_again() -> None:
    waiting = asyncio.Event()

    async def wait(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    with Misbehaving([problem(503, "draining")]) as server:
        async with AsyncClient(server.url, sleep=wait) as client:
            call = asyncio.create_task(client.classify("t", "x"))
            await waiting.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert len(server.requests) == 1
