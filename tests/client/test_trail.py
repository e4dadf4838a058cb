"""How far a try came: what is believed of a transport that tells, and of one that does not."""

from __future__ import annotations

import asyncio
from typing import Any

import httpcore
import httpx
import pytest

from client import DeadlineExceeded, OutcomeUnknown, UnreachableError
from client.failure import Stage, Trail
from tests.client.conftest import Asker
from tests.client.misbehaving import VERSION, Misbehaving, never_accepting, silent


def delete(client: Any) -> Any:
    return client.delete_version("t", VERSION)


class Silent(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A stranger that tells nothing of what it does, and then runs out of time."""

    def __init__(self, error: type[httpx.TransportError]) -> None:
        self._error = error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise self._error("so it is", request=request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout, httpx.WriteTimeout, httpx.ReadError, httpx.RemoteProtocolError]
)
def test_the_silence_of_a_stranger_says_nothing(ask: Asker, error: type[httpx.TransportError]) -> None:
    with pytest.raises(OutcomeUnknown):
        ask("http://server", delete, admin=True, transport=Silent(error))


@pytest.mark.parametrize(
    "error", [httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ConnectError, httpx.ProxyError]
)
def test_the_error_of_a_stranger_may_say_it(ask: Asker, error: type[httpx.TransportError]) -> None:
    with pytest.raises(UnreachableError):
        ask("http://server", delete, admin=True, transport=Silent(error))


class Deaf(httpx.HTTPTransport):
    """Not quite httpx's own: what it does is not told."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        del request.extensions["trace"]
        return super().handle_request(request)


class AsyncDeaf(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        del request.extensions["trace"]
        return await super().handle_async_request(request)


@pytest.mark.parametrize("deaf", [True, False])
def test_only_what_is_told_is_believed(ask: Asker, deaf: bool) -> None:
    """A time that is over while the answer is awaited, or, of the async client, while nobody accepts."""
    transports = {"sync": (httpx.HTTPTransport, Deaf), "async": (httpx.AsyncHTTPTransport, AsyncDeaf)}
    transport = transports[ask.kind][deaf]
    with Misbehaving([silent]) as server, pytest.raises(OutcomeUnknown):
        ask(server.url, delete, admin=True, timeout=1.0, transport=transport())
    doubt = deaf and ask.kind == "async"  # httpx's own error says it to the blocking one
    with never_accepting() as (url, _), pytest.raises(OutcomeUnknown if doubt else DeadlineExceeded):
        ask(url, delete, admin=True, timeout=1.0, transport=transport())


def _request(method: bytes) -> dict[str, Any]:
    return {"request": httpcore.Request(method, "http://server/")}


@pytest.mark.parametrize(
    ("events", "stage"),
    [
        ([], Stage.WAITING),
        ([("connection.connect_tcp.started", {})], Stage.CONNECTING),
        ([("socks.setup_socks5_connection.started", {})], Stage.CONNECTING),
        ([("http11.send_request_headers.started", _request(b"CONNECT")), ("http11.response_closed.started", {}),
          ("proxy.start_tls.started", {})], Stage.CONNECTING),
        ([("http11.send_request_headers.started", _request(b"CONNECT")),
          ("http11.send_request_headers.started", _request(b"DELETE"))], Stage.SENDING),
        ([("http2.send_connection_init.started", _request(b"PUT"))], Stage.SENDING),
        ([("http11.send_request_headers.started", _request(b"PUT")), ("connection.connect_tcp.started", {})],
         Stage.SENDING),
        ([("http4.something.new", {})], Stage.SENDING),
        ([("?", {"request": None})], Stage.SENDING),
    ],
)  # fmt: skip
def test_events_and_what_they_say(events: list[tuple[str, dict[str, Any]]], stage: Stage) -> None:
    sure, stranger = Trail(told=True), Trail(told=False)
    for event in events:
        sure.mark(*event)
        asyncio.run(stranger.mark_async(*event))
    assert (sure.stage, stranger.stage) == (stage, stage if events else Stage.UNKNOWN)
