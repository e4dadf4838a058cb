"""The outermost layer of both apps: every request gets an id, an answer, a count and at most one log line.

Owns: request ids, the last resort for exceptions, HTTP metrics, the access log, and how many requests are in
flight. Must not know: routes, bodies, what the answers mean. Pure ASGI: it wraps `send` once and allocates
little.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Mapping
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_store import PromptStoreError
from server.body import header
from server.errors import Draining, ServerError
from server.metrics import Metrics
from server.problem import code_of, problem

# What may go into a header, a log line and an answer as it came.
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
PROBLEM_JSON: Final = "application/problem+json"
CLIENT_CLOSED: Final = 499


class Boundary:
    """Wraps one app. `name` is the label of its metrics.

    `direct` holds endpoints by method and exact path that are called without the app: its layers and its router take
    as long as the rest of a short request. The app has them too, for other methods and for its documentation.
    """

    def __init__(
        self,
        app: ASGIApp,
        name: str,
        metrics: Metrics,
        *,
        access_log: bool,
        direct: Mapping[tuple[str, str], ASGIApp] | None = None,
    ) -> None:
        self._app, self._name, self._metrics, self._access_log = app, name, metrics, access_log
        self._direct = dict(direct or {})
        self._log = structlog.get_logger("promptmux.http")
        self._tasks: set[asyncio.Task[object]] = set()
        self._aborting = False

    @property
    def in_flight(self) -> int:
        """Requests that are being worked on."""
        return len(self._tasks)

    def abort(self) -> None:
        """Answer 503 to everything in flight, now."""
        self._aborting = True
        for task in list(self._tasks):
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        text = given.decode("latin-1") if given else ""
        # Random enough to tell requests apart; nothing rests on nobody guessing it.
        request_id = scope["request_id"] = (
            text if REQUEST_ID.fullmatch(text) else f"{random.getrandbits(64):016x}"
        )
        status = 0
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            endpoint = self._direct.get((scope["method"], scope["path"]), self._app)
            await endpoint(scope, receive, send_with_id)
        except (ServerError, PromptStoreError) as error:  # of a direct endpoint: the app answers its own
            if error.status == 500:
                self._log.error("server_error", request_id=request_id, code=error.code)
            await send_problem(error, scope, send_with_id)
        except asyncio.CancelledError:
            if not self._aborting or status:
                raise
            await send_problem(
                Draining("the server stopped before the answer was ready").closing(), scope, send_with_id
            )
        except Exception as error:
            self._log.exception("request_failed", request_id=request_id, route=_route(scope))
            if not status:
                await send_problem(error, scope, send_with_id)
        finally:
            self._tasks.discard(task)
            self._count(scope, status or CLIENT_CLOSED, time.perf_counter() - began, request_id)

    def _count(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = _route(scope)
        self._metrics.http_requests.labels(self._name, route, str(status)).inc()
        self._metrics.http_duration.labels(route).observe(seconds)
        code = scope.get("problem_code")
        if code is not None:
            self._metrics.http_errors.labels(self._name, route, code).inc()
        if self._access_log:
            self._log.info(
                "request",
                request_id=request_id,
                app=self._name,
                method=scope["method"],
                route=route,
                status=status,
                seconds=round(seconds, 6),
                key=scope.get("api_key_name"),
            )


async def send_problem(error: BaseException, scope: Scope, send: Send) -> None:
    """Answer with what `problem` makes of the error."""
    status, headers, body = problem(error, scope["request_id"])
    scope["problem_code"] = code_of(error)
    await send_bytes(send, status, PROBLEM_JSON, body, headers)


async def send_bytes(
    send: Send, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None
) -> None:
    """One complete answer."""
    raw = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    raw += [(key.lower().encode(), value.encode()) for key, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    # The template, never the path: a metric's label and a log line must not carry what a caller made up.
    return str(scope.get("route_path") or getattr(scope.get("route"), "path", "_unknown"))
