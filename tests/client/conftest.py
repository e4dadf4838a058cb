from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from client import AdminClient, AsyncAdminClient, AsyncClient, Client

Do = Callable[[Any], Any]


class Asker:
    """Does the same with a blocking and with an async client; keeps the waits that they would have waited."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.waits: list[float] = []

    def __call__(self, url: str, do: Do, *, admin: bool = False, **options: Any) -> Any:
        """What `do(client)` answers; a list of calls is done one after the other."""
        if self.kind == "sync":
            with (AdminClient if admin else Client)(url, sleep=self.waits.append, **options) as client:
                return do(client)
        return asyncio.run(self._ask(url, do, admin, options))

    async def _ask(self, url: str, do: Do, admin: bool, options: dict[str, Any]) -> Any:
        async with (AsyncAdminClient if admin else AsyncClient)(url, sleep=self._wait, **options) as client:
            answer = do(client)
            return await answer if inspect.isawaitable(answer) else answer

    async def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Asker:
    return Asker(request.param)
