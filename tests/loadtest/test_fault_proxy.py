from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.fault_proxy import FaultProxy, Mode, ThreadedProxy
from loadtest.faults.redis_process import RedisProcess

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """Answers every read with itself, and counts the connections that it still has."""

    def __init__(self) -> None:
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with contextlib.suppress(ConnectionError):
            while read := await reader.read(65536):
                writer.write(read)
                await writer.drain()
        self.open -= 1
        writer.close()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(streams: Streams, text: bytes, patience: float = 60.0) -> bytes:
    reader, writer = streams
    writer.write(text)
    async with asyncio.timeout(patience):
        return await reader.readexactly(len(text))


async def test_it_passes_everything_on_and_both_ends_learn_of_a_close(proxy: FaultProxy, echo: Echo) -> None:
    large = bytes(range(256)) * 20_000
    async with connected(proxy) as one, connected(proxy) as two:
        first, second = await asyncio.gather(answer(one, large), answer(two, b"two"))
        assert first == large
        assert second == b"two"
        assert (proxy.accepted, proxy.open, echo.open) == (2, 2, 2)
    for _ in range(500):
        if not echo.open and not proxy.open:
            break
        await asyncio.sleep(0.01)
    assert (echo.open, proxy.open) == (0, 0)


async def test_refuse_closes_and_refuses_and_keeps_the_port(proxy: FaultProxy) -> None:
    port = proxy.port
    async with connected(proxy) as before:
        await answer(before, b"x")
        proxy.mode = Mode.REFUSE
        assert await before[0].read() == b""
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        proxy.mode = Mode.REFUSE
    proxy.mode = Mode.PASS
    assert proxy.port == port
    async with connected(proxy) as after:
        assert await answer(after, b"y") == b"y"


async def test_reset_resets_what_is_open_and_what_comes(proxy: FaultProxy) -> None:
    async with connected(proxy) as before:
        await answer(before, b"x")
        proxy.mode = Mode.RESET
        with pytest.raises(ConnectionResetError):
            await answer(before, b"y")
    with pytest.raises(ConnectionResetError):
        async with connected(proxy) as new:
            await answer(new, b"z")
    proxy.mode = Mode.PASS
    async with connected(proxy) as after:
        assert await answer(after, b"z") == b"z"


async def test_what_was_in_the_black_hole_stays_dead(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as before, connected(proxy) as closing:
        await answer(before, b"x")
        await answer(closing, b"x")
        proxy.mode = Mode.BLACKHOLE
        async with connected(proxy) as new:
            closing[1].close()
            for streams in (before, new):
                with pytest.raises(TimeoutError):
                    await answer(streams, b"lost", 0.1)
            assert echo.open == 2  # the server learns of no close either
            proxy.mode = Mode.PASS
            for streams in (before, new):
                with pytest.raises(TimeoutError):
                    await answer(streams, b"later", 0.1)
        async with connected(proxy) as after:
            assert await answer(after, b"y") == b"y"


async def test_what_a_mode_ends_is_closed_even_if_it_was_only_just_accepted(proxy: FaultProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port)) as left:
        for _ in range(1000):
            if proxy.accepted:
                break
            await asyncio.sleep(0)  # one turn of the loop at a time: its task has not begun
        assert proxy.accepted == 1
        proxy.mode = Mode.REFUSE
        assert proxy.open == 1
        await proxy.settled()
        assert proxy.open == 0
        left.settimeout(60)
        assert left.recv(1) == b""


async def test_every_reply_is_late_by_the_same_time(proxy: FaultProxy) -> None:
    proxy.delay, proxy.mode = 0.2, Mode.LATENCY
    async with connected(proxy) as (reader, writer):
        for _ in range(10):  # a machine that stands still in between makes some later, never sooner
            sent, came = [], []
            for _ in range(5):
                writer.write(b"x")
                sent.append(time.monotonic())
                await asyncio.sleep(0.04)
            for _ in range(5):
                await reader.readexactly(1)
                came.append(time.monotonic())
            late = [there - here for here, there in zip(sent, came, strict=True)]
            assert min(late) >= 0.19
            if max(late) < 0.35:
                break
        else:
            pytest.fail(f"one reply waits for another's time: {late}")
        proxy.delay, proxy.mode = 3600.0, Mode.PASS
        await answer((reader, writer), b"y")


async def test_a_server_that_is_away_resets(proxy: FaultProxy) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with FaultProxy("127.0.0.1", bound.getsockname()[1]) as alone:
            with pytest.raises(ConnectionResetError):
                async with connected(alone) as streams:
                    await answer(streams, b"x")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.mark.parametrize("command", ["subscribe", "psubscribe"])
async def test_subscribers_hear_nothing_while_pushes_are_dropped(server: RedisProcess, command: str) -> None:
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        redis.asyncio.Redis(port=proxy.port) as client,
        client.pubsub(ignore_subscribe_messages=False) as listener,
    ):

        async def heard(patience: float = 60.0) -> object:
            message = await listener.get_message(timeout=patience)
            return message and message["data"]

        await getattr(listener, command)("news")
        assert await heard() == 1
        await client.publish("news", "first")
        assert await heard() == b"first"
        proxy.mode = Mode.DROP_PUSH
        assert await client.publish("news", "second") == 1  # Redis has sent it
        await client.set("key", "value")
        assert await heard(0.15) is None
        assert proxy.dropped == 1
        proxy.mode = Mode.PASS
        await client.publish("news", "third")
        assert await heard() == b"third"


async def test_a_subscription_cut_in_two_is_seen(proxy: FaultProxy) -> None:
    proxy.mode = Mode.DROP_PUSH
    async with connected(proxy) as streams:
        assert await answer(streams, b"*2\r\n$9\r\nsubsc") == b"*2\r\n$9\r\nsubsc"
        with pytest.raises(TimeoutError):
            await answer(streams, b"ribe\r\n$4\r\nnews\r\n", 0.1)


def test_a_thread_can_run_it(server: RedisProcess) -> None:
    with ThreadedProxy("127.0.0.1", server.port) as proxy:
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=proxy.port, socket_timeout=2, retry=once) as client:
            assert client.ping()
            for mode, error in (
                (Mode.RESET, redis.ConnectionError),
                (Mode.REFUSE, redis.ConnectionError),
                (Mode.BLACKHOLE, redis.TimeoutError),
            ):
                proxy.mode = mode
                assert proxy.mode is mode
                with pytest.raises(error):
                    client.ping()
                proxy.mode = Mode.PASS
                assert client.ping()
            proxy.delay = 0.1
            proxy.mode = Mode.LATENCY
            began = time.monotonic()
            assert client.ping()
            assert time.monotonic() - began >= 0.1
        assert proxy.accepted >= 4
        assert proxy.open >= 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))


def test_a_thread_ends_with_connections_open(server: RedisProcess, tmp_path: Path) -> None:
    with ThreadedProxy("127.0.0.1", server.port) as proxy:
        left = socket.create_connection(("127.0.0.1", proxy.port))
        proxy.mode = Mode.BLACKHOLE
    left.settimeout(60)
    assert left.recv(1) == b""
    left.close()
