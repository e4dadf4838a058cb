"""What the tests of the store in Redis share."""

import asyncio
import contextlib
import time
from typing import Any

from loadtest.faults.redis_process import RedisProcess
from prompt_store import open_store


@contextlib.asynccontextmanager
async def opened(url: str) -> Any:
    store = open_store(url)
    try:
        yield store
    finally:
        await store.aclose()


def raw_info(redis: RedisProcess) -> bytes:
    info = redis.run("INFO", "replication")
    return info if isinstance(info, bytes) else "\n".join(f"{k}:{v}" for k, v in info.items()).encode()


async def until(holds: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
