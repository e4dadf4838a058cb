import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server import protocol
from server.boundary import send_bytes
from server.protocol import BoundedHttpProtocol


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send_bytes(send, 200, "text/plain", b"fine")


Open = Callable[[], Any]


@pytest.fixture
async def connect(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    config = uvicorn.Config(app, port=0, http=BoundedHttpProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    monkeypatch.setattr(server, "capture_signals", contextlib.nullcontext)
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 — uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    writers = []

    async def open_connection() -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    yield open_connection
    for writer in writers:
        writer.close()
    server.should_exit = True
    await running


def code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["code"])


async def test_who_asks_nothing_is_told_nothing(connect: Open) -> None:
    """A pool's first request that is on its way just then must not meet another's answer."""
    reader, _ = await connect()
    assert await asyncio.wait_for(reader.read(), 20) == b""


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX-Y"])
async def test_a_slow_head_is_given_up(connect: Open, sent: bytes) -> None:
    reader, writer = await connect()
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 20)
    assert answer.startswith(b"HTTP/1.1 408")
    assert code(answer) == "head_timeout"


async def test_a_head_that_drips_is_given_up(connect: Open) -> None:
    reader, writer = await connect()
    answer = asyncio.create_task(reader.read())
    while not answer.done():
        try:
            writer.write(b"X" if writer.transport.get_write_buffer_size() == 0 else b"")
            await asyncio.sleep(0.02)
        except OSError:
            break
    assert b"head_timeout" in await answer or b"invalid_http" in await answer


async def test_the_second_request_of_a_connection_has_a_deadline_too(connect: Open) -> None:
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"fine")).startswith(b"HTTP/1.1 200")
    writer.write(b"GET / HTTP/1.1\r\nHost:")
    assert code(await asyncio.wait_for(reader.read(), 20)) == "head_timeout"


async def test_an_idle_connection_may_rest_between_requests(connect: Open) -> None:
    reader, writer = await connect()
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"fine")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.5)


async def test_a_large_head_is_431_and_a_large_pipelined_body_is_not(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 60.0)
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\nX: ")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.write(b"x" * (protocol.MAX_HEAD_BYTES + 1))
    assert code(await asyncio.wait_for(reader.read(), 20)) == "head_too_large"
    reader, writer = await connect()
    body = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000
    writer.write(body + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    both = await reader.readuntil(b"fine") + await asyncio.wait_for(reader.readuntil(b"fine"), 20)
    assert both.count(b"HTTP/1.1 200") == 2
