"""Owns how operations are carried out: two thin transports, one that blocks and one for asyncio. Knows no routes.

What both do (the request's form, the judgement of failures, when to try again) is not here but in `operation`,
`failure` and `retry`; so the two cannot differ in it.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from client.deadline import Deadline, Left, hold_deadlines
from client.errors import InvalidAnswer, InvalidCall
from client.failure import Failure, Trail, of_exception, of_response, tells
from client.operation import Operation, Reply, header_value
from client.retry import Budget, Retries, Tries

DEFAULT_TIMEOUT = 30.0
_KEEP_ALIVE = (
    30.0  # seconds: shorter than the server's and than most gateways', so that who sends is who closes
)
P = ParamSpec("P")
T = TypeVar("T")


class _Base:
    """What both kinds of connection are made of."""

    def __init__(
        self,
        base_url: str,
        key: str | None,
        timeout: float | None,
        retries: Retries | None,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {header_value('key', key)}"}
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidCall(f"{base_url}: {error}") from None
        if timeout is not None and not timeout > 0:
            raise InvalidCall("timeout: expected more than 0 seconds")
        self._options: dict[str, Any] = {"base_url": url, "headers": headers}
        self._where = str(url.copy_with(username=None, password=None))
        self._timeout = timeout
        self._retries = Retries() if retries is None else retries
        self._budget = Budget(self._retries)
        self._told = tells(transport)

    def _deadline_of(self, timeout: float | None, clock: Callable[[], float]) -> Deadline:
        return Deadline.after(self._timeout if timeout is None else timeout, clock)

    def _tries(self, operation: Operation[Any], deadline: Deadline) -> Tries:
        return Tries(operation.repeat, deadline, self._retries, self._budget, self._where)

    def _request(self, operation: Operation[Any], tries: Tries) -> dict[str, Any]:
        return {
            "method": operation.method,
            "url": operation.path,
            "params": dict(operation.params) or None,
            "content": operation.content,
            "headers": {**operation.headers, "X-Request-ID": tries.request_id},
        }

    def _judge(self, response: httpx.Response, operation: Operation[Any], tries: Tries) -> Reply | Failure:
        if response.is_success or response.status_code in operation.understood:
            return Reply(response.status_code, response.headers, response.content)
        return of_response(response, tries.request_id)

    def _read(self, reply: Reply, operation: Operation[T], tries: Tries) -> T:
        tries.succeeded()
        try:
            return operation.read(reply)
        except (ValueError, LookupError, TypeError, AttributeError):
            text = f"{self._where}: answered {operation.path} with {reply.status}, but not as promptmux does"
            raise InvalidAnswer(text, request_id=tries.request_id) from None


class Connection(_Base):
    """A client that blocks; base of `Client` and `AdminClient`, and a context manager that closes its connections.

    One object serves many threads at once, and should: they share its connections and its budget of retries.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: Retries | None = None,
        connections: int = 100,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`key` is sent as a bearer token. `timeout` is in seconds for a whole call with all its tries, None for no
        end; each method takes one of its own. `connections` is how many are open at most; who finds all in use waits.

        `transport`, `clock` and `sleep` replace the network and time in tests.
        """
        super().__init__(base_url, key, timeout, retries, transport)
        self._http = httpx.Client(transport=transport, limits=_limits(connections), **self._options)
        hold_deadlines(self._http)
        self._clock, self._sleep = clock, sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _deadline(self, timeout: float | None) -> Deadline:
        return self._deadline_of(timeout, self._clock)

    def _run(self, operation: Operation[T], deadline: Deadline | None = None) -> T:
        deadline = deadline or self._deadline(operation.timeout)
        tries = self._tries(operation, deadline)
        while True:
            tries.begin()
            answer = self._try(operation, tries, deadline)
            if isinstance(answer, Reply):
                return self._read(answer, operation, tries)
            self._sleep(tries.failed(answer))

    def _try(self, operation: Operation[Any], tries: Tries, deadline: Deadline) -> Reply | Failure:
        left = None if math.isinf(deadline.at) else Left(deadline)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), left)
        trail = Trail(self._told)
        watched = {"timeout": timeouts, "trace": trail.mark}
        try:
            response = self._http.request(**self._request(operation, tries), extensions=watched)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return of_exception(error, self._where, tries.request_id, trail)
        return self._judge(response, operation, tries)


class AsyncConnection(_Base):
    """A client for asyncio; base of `AsyncClient` and `AsyncAdminClient`, and an async context manager.

    One object serves any number of coroutines of one event loop. A call that is cancelled closes its connection, and
    the server drops what it was asked.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: Retries | None = None,
        connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`key` is sent as a bearer token. `timeout` is in seconds for a whole call with all its tries, None for no
        end; each method takes one of its own. `connections` is how many are open at most; who finds all in use waits.

        `transport` and `sleep` replace the network and waiting in tests; the clock is the event loop's.
        """
        super().__init__(base_url, key, timeout, retries, transport)
        # The event loop ends a try that takes too long: httpx's own timeouts would only compete with it.
        self._http = httpx.AsyncClient(
            transport=transport, limits=_limits(connections), timeout=None, **self._options
        )
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _deadline(self, timeout: float | None) -> Deadline:
        return self._deadline_of(timeout, asyncio.get_running_loop().time)

    async def _run(self, operation: Operation[T], deadline: Deadline | None = None) -> T:
        deadline = deadline or self._deadline(operation.timeout)
        tries = self._tries(operation, deadline)
        while True:
            tries.begin()
            answer = await self._try(operation, tries, deadline)
            if isinstance(answer, Reply):
                return self._read(answer, operation, tries)
            await self._sleep(tries.failed(answer))

    async def _try(self, operation: Operation[Any], tries: Tries, deadline: Deadline) -> Reply | Failure:
        trail = Trail(self._told)
        watched = {"trace": trail.mark_async}
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline.at) else deadline.at):
                response = await self._http.request(**self._request(operation, tries), extensions=watched)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return of_exception(error, self._where, tries.request_id, trail)
        return self._judge(response, operation, tries)


def blocking(build: Callable[P, Operation[T]]) -> Callable[Concatenate[Connection, P], T]:
    """A method of a blocking client that carries out what `build` makes; its help is `build`'s."""

    def method(self: Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(build(*args, **kwargs))

    return _like(method, build)


def awaiting(
    build: Callable[P, Operation[T]],
) -> Callable[Concatenate[AsyncConnection, P], Coroutine[Any, Any, T]]:
    """The same as a coroutine of an async client."""

    async def method(self: AsyncConnection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(build(*args, **kwargs))

    return _like(method, build)


F = TypeVar("F", bound=Callable[..., Any])


def _like(method: F, build: Callable[..., Operation[Any]]) -> F:
    method.__name__ = method.__qualname__ = build.__name__
    method.__doc__ = build.__doc__
    signature = inspect.signature(build)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    gives = str(signature.return_annotation).removeprefix("Operation[").removesuffix("]")
    shown = signature.replace(parameters=[itself, *signature.parameters.values()], return_annotation=gives)
    method.__signature__ = shown  # type: ignore[attr-defined]
    return method


def _limits(connections: int) -> httpx.Limits:
    # As many idle ones as there may be busy ones: with fewer, threads that ask in turn would connect anew each time.
    return httpx.Limits(
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=_KEEP_ALIVE,
    )
