"""A tiny HTTP server on a thread of its own, whose answers come when and as a test wants them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

ANSWER = b"HTTP/1.1 200 OK\r\nServer-Timing: queue;dur=1.5, forward;dur=2.5\r\ncontent-length: 2\r\n\r\n{}"
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nlate"
_PATIENCE = 600  # seconds; only ever reached when something is broken


@dataclass
class SlowServer:
    """`answer(nth)` gives the bytes of the nth answer (b"" hangs up) when it is ready to.

    With `hang_up` each connection is closed after an answer; `get` answers GET, by its head; `die` ends it for good.
    """

    answer: Callable[[int], Awaitable[bytes]]
    hang_up: bool = False
    url: str = ""
    bodies: list[object] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    get: Callable[[bytes], bytes] | None = None
    die: Callable[[], None] = lambda: None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        # Cancelled is how a server that ends ends this; asyncio's streams would log that as an error of ours.
        ends = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.closing(writer), contextlib.suppress(*ends):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if self.get and head.startswith(b"GET "):
                    writer.write(self.get(head))
                    break
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.heads.append(head)
                self.bodies.append(json.loads(await reader.readexactly(length)))
                said = await self.answer(len(self.bodies) - 1)
                if not said:
                    break
                # In two pieces, as networks do.
                writer.write(said[:20])
                await writer.drain()
                writer.write(said[20:])
                await writer.drain()
                if self.hang_up:
                    break


@contextlib.contextmanager
def serving(
    answer: Callable[[int], Awaitable[bytes]],
    *,
    hang_up: bool = False,
    healthy: bool = False,
    get: Callable[[bytes], bytes] | None = None,
) -> Iterator[SlowServer]:
    """Serve on a free loopback port until the block ends; `healthy` answers GET with 200."""
    server = SlowServer(answer, hang_up, get=get or ((lambda head: ANSWER) if healthy else None))
    started, stop = threading.Event(), threading.Event()

    async def run() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        started.set()
        await asyncio.to_thread(stop.wait)
        listener.close()
        open_still = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_still:
            task.cancel()
        await asyncio.gather(*open_still, return_exceptions=True)
        await asyncio.sleep(0)  # what was closed is gone one turn of the loop later

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()

    def die() -> None:
        stop.set()
        thread.join(_PATIENCE)

    server.die = die
    assert started.wait(_PATIENCE)
    try:
        yield server
    finally:
        die()
