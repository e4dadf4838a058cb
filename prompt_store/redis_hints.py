"""The subscription to a store's changes: it wakes watchers early, and nothing rests on it.

Owns: the task that listens. Must not know: what changed, or who waits.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from prompt_store.errors import StoreUnavailable
from prompt_store.redis_connection import RedisConnection, as_unavailable

_AGAIN_SECONDS: Final = 0.5


class RedisHints:
    """Calls `wake` at each message on `channel`, from the first `listen` on."""

    def __init__(self, connection: RedisConnection, channel: str, wake: Callable[[], None]) -> None:
        self._connection, self._channel, self._wake = connection, channel, wake
        self._task: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Subscribe, unless that is done."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._hear())

    def drop(self) -> None:
        """Leave the connection, which may be dead; the next `listen` takes another."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def aclose(self) -> None:
        """Leave the connection for good."""
        task = self._task
        self.drop()
        if task is not None:
            await asyncio.wait([task])

    async def _hear(self) -> None:
        while True:
            with suppress(StoreUnavailable), as_unavailable():
                async with self._connection.subscriber() as subscriber:
                    await subscriber.subscribe(self._channel)
                    async for _ in subscriber.listen():
                        self._wake()
            await asyncio.sleep(_AGAIN_SECONDS)
