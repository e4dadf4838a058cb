"""A TCP proxy on loopback in front of one address, whose network breaks at a word and heals at another.

Owns: its connections and what each mode does to them. Must not know: what listens behind it, except that Redis's
SUBSCRIBE makes a connection one for pushes.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

# A command is an array of strings with their lengths before them; the names of the three end alike.
_SUBSCRIBE = re.compile(rb"\$\d+\r\n[PS]?SUBSCRIBE\r\n", re.IGNORECASE)
_MESSAGE = b"message\r\n"  # or pmessage
_LONGEST = 24  # bytes of it, at most: as many are kept of a read, for a command cut in two
_CHUNK = 65536


class Mode(enum.Enum):
    """What the network does."""

    PASS = "pass"
    REFUSE = "refuse"  # nothing listens, connections are closed: the process is gone
    RESET = "reset"  # connections are reset, new ones as soon as they are accepted
    BLACKHOLE = "blackhole"  # connections stay open and carry nothing; they stay so when the network heals
    LATENCY = "latency"  # every reply comes `delay` seconds late
    DROP_PUSH = "drop_push"  # connections that subscribed get nothing, all others pass


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket | None = None
    task: asyncio.Task[None] | None = None
    dead: bool = False  # nothing is forwarded, ever again
    subscribed: bool = False
    ended: bool = False
    reset: bool = False  # how it ends

    def end(self, *, reset: bool) -> None:
        if self.task is not None and not self.ended:
            self.ended, self.reset = True, reset
            self.task.cancel()

    def close(self) -> None:
        for side in (self.client, self.server):
            if side is not None:
                _close(side, reset=self.reset)


class FaultProxy:
    """Listens on `port` between `async with` and its end, in front of the address that it is given.

    `mode` is switched live, on the loop's thread; `settled` waits until what it ends has ended. `delay` is LATENCY's;
    `accepted` counts connections, `dropped` the messages that DROP_PUSH kept from subscribers.
    """

    def __init__(self, host: str, port: int, *, delay: float = 0.1) -> None:
        self.port = 0
        self.delay = delay
        self.accepted = 0
        self.dropped = 0
        self._target = (host, port)
        self._mode = Mode.PASS
        self._connections: set[_Connection] = set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._bind()
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for connection in self._connections:
            connection.end(reset=False)
        await self.settled()

    @property
    def mode(self) -> Mode:
        """What the network does now; setting it does it at once."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        before, self._mode = self._mode, mode
        if mode is Mode.REFUSE and before is not Mode.REFUSE:
            # Bound and not listening, the port refuses and nobody else can be given it.
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._bind()
        elif before is Mode.REFUSE and mode is not Mode.REFUSE:
            self._listen()
        for connection in self._connections:
            if mode in (Mode.REFUSE, Mode.RESET):
                connection.end(reset=mode is Mode.RESET)
            elif mode is Mode.BLACKHOLE:
                connection.dead = True

    @property
    def open(self) -> int:
        """Connections that are open now, dead ones included."""
        return len(self._connections)

    async def settled(self) -> None:
        """Wait until every connection that a mode has ended is closed."""
        while ending := [one.task for one in self._connections if one.ended and one.task is not None]:
            await asyncio.wait(ending)
            await asyncio.sleep(0)  # for the callbacks that close them

    def _bind(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]

    def _listen(self) -> None:
        self._socket.listen(1024)
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:  # gone again
            return
        self.accepted += 1
        if self._mode is Mode.RESET:
            _close(client, reset=True)
            return
        client.setblocking(False)
        connection = _Connection(client, dead=self._mode is Mode.BLACKHOLE)
        self._connections.add(connection)
        connection.task = self._loop.create_task(self._serve(connection))
        connection.task.add_done_callback(lambda _: self._closed(connection))  # also if it never came to run

    async def _serve(self, connection: _Connection) -> None:
        try:
            if connection.dead:
                await self._requests(connection)
            else:
                await self._connect(connection)
                await self._forward(connection)
        except OSError:
            connection.reset = True  # nothing answers behind the proxy

    def _closed(self, connection: _Connection) -> None:
        connection.close()
        self._connections.discard(connection)

    async def _connect(self, connection: _Connection) -> None:
        connection.server = socket.socket()
        connection.server.setblocking(False)
        await self._loop.sock_connect(connection.server, self._target)
        for side in (connection.client, connection.server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def _forward(self, connection: _Connection) -> None:
        """Both ways, until one side has closed; of a dead connection, neither learns that the other has."""
        ways = [
            self._loop.create_task(way) for way in (self._requests(connection), self._replies(connection))
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if connection.dead:
                await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self, connection: _Connection) -> None:
        before = b""
        while read := await self._loop.sock_recv(connection.client, _CHUNK):
            if not connection.subscribed:
                connection.subscribed = _SUBSCRIBE.search(before + read) is not None
                before = (before + read)[-_LONGEST:]
            if connection.server is not None and not connection.dead:
                await self._loop.sock_sendall(connection.server, read)

    async def _replies(self, connection: _Connection) -> None:
        assert connection.server is not None
        # Each read is timed when it comes, so that many replies in a row are all late by the same time.
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._deliver(connection, late))
            read = b"more"
            while read:
                read = await self._loop.sock_recv(connection.server, _CHUNK)
                delay = self.delay if self._mode is Mode.LATENCY else 0.0
                dropped = self._mode is Mode.DROP_PUSH and connection.subscribed
                if read and dropped:
                    self.dropped += read.count(_MESSAGE)
                else:
                    await late.put((self._loop.time() + delay, read))

    async def _deliver(self, connection: _Connection, late: asyncio.Queue[tuple[float, bytes]]) -> None:
        while True:
            due, read = await late.get()
            if not read:
                return
            if (wait := due - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            if not connection.dead:
                await self._loop.sock_sendall(connection.client, read)


class ThreadedProxy:
    """A FaultProxy on a thread and a loop of its own, for programs that have none."""

    def __init__(self, host: str, port: int, *, delay: float = 0.1) -> None:
        self._proxy = FaultProxy(host, port, delay=delay)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        try:
            self._do(self._proxy.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._do(self._proxy.__aexit__())
        finally:
            self._end()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._proxy.port

    @property
    def mode(self) -> Mode:
        """What the network does now; when setting it returns, it is done."""
        return self._proxy.mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        async def switch() -> None:
            self._proxy.mode = mode
            await self._proxy.settled()

        self._do(switch())

    @property
    def delay(self) -> float:
        """LATENCY's seconds."""
        return self._proxy.delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._proxy.delay = seconds

    @property
    def accepted(self) -> int:
        """Connections that were accepted so far."""
        return self._proxy.accepted

    @property
    def dropped(self) -> int:
        """Messages that were kept from subscribers so far."""
        return self._proxy.dropped

    @property
    def open(self) -> int:
        """Connections that are open now, dead ones included."""
        return self._proxy.open

    def _do(self, step: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(30)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _close(one: socket.socket, *, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
