"""The law of what was not sent: a write of which no byte can have left is never in doubt, and any other one is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from client import (
    AdminClient,
    AsyncAdminClient,
    ClientError,
    DeadlineExceeded,
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
    Misbehaving,
    answer,
    hang_up,
    never_accepting,
    problem,
    silent,
)
from tests.client.virtual_time import AsyncBackend, Backend, Clock, Exchange, run_in

TLS = ssl.create_default_context()
STEPS = ("connect", "write", "head", "part")


def delete(client: Any) -> Any:
    return client.delete_version("t", VERSION)


def arrived(listener: socket.socket) -> bytes:
    """All that was ever sent to a server that did not accept."""
    data = b""
    listener.settimeout(0.5)  # who was dropped comes once more
    with contextlib.suppress(TimeoutError):
        while True:
            connection, _ = listener.accept()
            connection.settimeout(0.1)
            with connection, contextlib.suppress(TimeoutError):
                data += connection.recv(65536)
    return data


def test_nobody_accepts(ask: Asker) -> None:
    with never_accepting() as (url, listener):
        with pytest.raises(DeadlineExceeded, match="no connection in time") as caught:
            ask(url, delete, admin=True, timeout=0.5)
        assert caught.value.tries == 1
        assert not arrived(listener)


def test_no_connection_is_free(ask: Asker) -> None:
    begin = "no time to begin: are all connections of this client in use"
    with Misbehaving([silent]) as server:
        if ask.kind == "sync":
            with AdminClient(server.url, connections=1) as client, ThreadPoolExecutor(1) as threads:
                held = threads.submit(client.delete_version, "held", VERSION, timeout=4.0)
                assert server.arrived.wait(PATIENCE)
                with pytest.raises(DeadlineExceeded, match=begin):
                    client.delete_version("t", VERSION, timeout=0.1)
                with pytest.raises(OutcomeUnknown, match="no answer in time"):
                    held.result(PATIENCE)
        else:
            asyncio.run(_no_connection_is_free(server, begin))
    assert [request.path.split("/")[3] for request in server.requests] == ["held"]


async def _no_connection_is_free(server: Misbehaving, begin: str) -> None:
    async with AsyncAdminClient(server.url, connections=1) as client:
        held = asyncio.create_task(client.delete_version("held", VERSION, timeout=4.0))
        assert await asyncio.to_thread(server.arrived.wait, PATIENCE)
        with pytest.raises(DeadlineExceeded, match=begin):
            await client.delete_version("t", VERSION, timeout=0.1)
        with pytest.raises(OutcomeUnknown, match="no answer in time"):
            await held


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Misbehaving]:
    """One that all that goes to no loopback address goes through; it hangs up."""
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Misbehaving(always=hang_up) as server:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("https_proxy", server.url)
        yield server


def test_a_proxy_that_makes_no_tunnel_has_not_seen_the_request(ask: Asker, proxy: Misbehaving) -> None:
    with pytest.raises(UnreachableError) as caught:
        ask("https://server.test", delete, admin=True)
    # So even a delete is tried again.
    assert caught.value.tries == Retries().tries == len(proxy.requests)
    assert {request.method for request in proxy.requests} == {"CONNECT"}


def test_a_proxy_that_hangs_as_it_makes_a_tunnel(ask: Asker, proxy: Misbehaving) -> None:
    proxy._always = silent
    with pytest.raises(DeadlineExceeded, match="no connection in time"):
        ask("https://server.test", delete, admin=True, timeout=1.0)
    assert {request.method for request in proxy.requests} == {"CONNECT"}


def test_a_proxy_that_took_the_request_may_have_passed_it_on(ask: Asker, proxy: Misbehaving) -> None:
    with pytest.raises(OutcomeUnknown):
        ask("http://server.test", delete, admin=True)
    assert [request.method for request in proxy.requests] == ["DELETE"]


@pytest.mark.parametrize("kept", [False, True])
def test_what_a_server_received_is_never_called_unsent(ask: Asker, kept: bool) -> None:
    """Time runs out at any moment: before the connection, on the way, or just after; on an old connection, too."""
    times = [0.0001 * 1.25**step for step in range(28)]  # 0.1 ms to 40 ms
    told: dict[str, ClientError] = {}

    def keep(error: ClientError) -> None:
        told[str(error.request_id)] = error

    def call_often(client: Any) -> Any:
        async def later() -> None:
            for time in times:
                if kept:
                    await client.delete_version("warm", VERSION)
                try:
                    await client.delete_version("t", VERSION, timeout=time)
                except ClientError as error:
                    keep(error)

        if ask.kind == "async":
            return later()
        for time in times:
            if kept:
                client.delete_version("warm", VERSION)
            try:
                client.delete_version("t", VERSION, timeout=time)
            except ClientError as error:
                keep(error)
        return None

    def act(server: Misbehaving, connection: socket.socket) -> bool:
        if "/warm/" in server.requests[-1].path:
            return answer(ACKNOWLEDGED)(server, connection)
        return silent(server, connection)

    with Misbehaving(always=act) as server:
        ask(server.url, call_often, admin=True)
    received = {request.headers["x-request-id"] for request in server.requests if "/t/" in request.path}
    assert len(told) == len(times)
    assert received  # at the latest with the longest time
    assert all(isinstance(told[one], OutcomeUnknown) for one in received)


DELAY = st.sampled_from([0.0, 0.01, 1.0, 5.0])
EXCHANGES = st.builds(
    Exchange,
    connect=DELAY,
    write=DELAY,
    head=DELAY,
    part=st.sampled_from([0.0, 0.2]),
    status=st.sampled_from([200, 503]),
    breaks=st.none() | st.sampled_from(STEPS),
)


def blocking(script: list[Exchange], timeout: float) -> tuple[Backend, ClientError | Receipt]:
    clock = Clock()
    transport = httpx.HTTPTransport(verify=TLS)
    transport._pool._network_backend = network = Backend(script, clock)
    times = {"clock": clock.time, "sleep": clock.sleep}
    with AdminClient("http://server", transport=transport, timeout=timeout, **times) as client:  # type: ignore[arg-type]
        try:
            return network, client.delete_version("t", VERSION)
        except ClientError as error:
            return network, error


def awaiting(script: list[Exchange], timeout: float) -> tuple[AsyncBackend, ClientError | Receipt]:
    network = AsyncBackend(script)

    async def ask() -> ClientError | Receipt:
        transport = httpx.AsyncHTTPTransport(verify=TLS)
        transport._pool._network_backend = network
        async with AsyncAdminClient("http://server", transport=transport, timeout=timeout) as client:
            try:
                return await client.delete_version("t", VERSION)
            except ClientError as error:
                return error

    return network, run_in(Clock(), ask())


@pytest.mark.parametrize("ask", [blocking, awaiting])
@settings(max_examples=150)
@given(script=st.lists(EXCHANGES, min_size=1, max_size=4), timeout=st.floats(0.005, 20))
@example(script=[Exchange(connect=1.0)], timeout=1.0)
@example(script=[Exchange(breaks="connect"), Exchange(connect=99)], timeout=5.0)
@example(script=[Exchange(breaks="connect"), Exchange(write=99)], timeout=5.0)
def test_doubt_begins_with_the_first_byte(ask: Any, script: list[Exchange], timeout: float) -> None:
    network, told = ask(script, timeout)
    if isinstance(told, Receipt):
        assert network.written == 1
    elif isinstance(told, OutcomeUnknown):
        # Only the blocking client looks at the clock once more, between what it is told and the first byte.
        late = ask is blocking and isinstance(told.__cause__, DeadlineExceeded)
        assert network.written == 1 or (late and network.written == 0)
    else:
        assert isinstance(told, UnreachableError)
        assert network.written == 0


def test_a_failure_of_the_server_leaves_a_write_in_doubt(ask: Asker) -> None:
    with Misbehaving(always=problem(500, "internal_error")) as server, pytest.raises(OutcomeUnknown):
        ask(server.url, delete, admin=True)
    assert len(server.requests) == 1
