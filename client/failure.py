"""Owns the judgement of a failed try: how far it came, what it is to the caller, whether another try may mend it, and
whether the server may have done it all the same. Knows no routes and no waiting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, Final

import httpx

from client.errors import (
    ApiError,
    ClientError,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidCall,
    UnreachableError,
)

# What may pass: the request's head or body came too slowly, too much at once, or somebody on the way is not up.
_PASSING: Final = frozenset({408, 429, 502, 503, 504})
_LONGEST: Final = 10.0**9  # seconds: whoever asks for more means never
_BEFORE: Final = frozenset({"connection", "proxy", "socks"})  # httpcore's events of the way to a server


class Stage(Enum):
    """How far a try came."""

    UNKNOWN = "its transport does not tell"
    WAITING = "for one of the client's connections"
    CONNECTING = "nothing of the request has left"
    SENDING = "the request may have left, or a part of it"


_LATE: Final = {
    Stage.WAITING: "no time to begin: are all connections of this client in use?",
    Stage.CONNECTING: "no connection in time",
}


class Trail:
    """One try's way to the server, as httpcore tells of it: `mark` is what its `trace` extension calls.

    The type of an error does not say it: a time that is over is the same whether a connection was waited for or an
    answer, and a proxy's connection may break before the request has left.
    """

    def __init__(self, told: bool) -> None:
        """`told`: the transport surely tells, so that silence means that nothing was begun (see `tells`)."""
        self.stage = Stage.WAITING if told else Stage.UNKNOWN
        self._tunnel = False

    def mark(self, event: str, info: Mapping[str, Any]) -> None:
        """One event, `<layer>.<step>.<started, complete or failed>`. One that is not known counts as sending."""
        if "request" in info:
            # A proxy is asked for a tunnel first, by a request of its own; later events of it do not name it.
            self._tunnel = getattr(info["request"], "method", None) == b"CONNECT"
        if self.stage is Stage.SENDING:
            return
        before = self._tunnel or event.partition(".")[0] in _BEFORE
        self.stage = Stage.CONNECTING if before else Stage.SENDING

    async def mark_async(self, event: str, info: Mapping[str, Any]) -> None:
        """The same for an async transport, which awaits it."""
        self.mark(event, info)


def tells(transport: object | None) -> bool:
    """Whether a transport surely tells each step; None is httpx's own. The silence of any other one says nothing."""
    return transport is None or type(transport) in (httpx.HTTPTransport, httpx.AsyncHTTPTransport)


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that came to nothing. `passing`: another one may do better. `perhaps_done`: the server may have acted."""

    error: ClientError
    passing: bool
    perhaps_done: bool


def of_response(response: httpx.Response, request_id: str) -> Failure:
    """The judgement of an answer that is not the one hoped for."""
    error = _api_error(response, request_id)
    # A refusal comes before anything is written, and a server that only starts writes nothing. Any other failure may
    # have come after the write: a store that failed to acknowledge, a server that was stopped, a gateway that lost it.
    refused = error.status < 500 or error.code == "not_ready"
    return Failure(error, error.status in _PASSING, not refused)


def of_exception(error: Exception, where: str, request_id: str, trail: Trail) -> Failure:
    """The judgement of an exchange that httpx could not bring to an end; `where` is the server's address."""
    text = f"{where}: {error or type(error).__name__}"
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return Failure(InvalidCall(text), passing=False, perhaps_done=False)
    stage = _stage_of(error) if trail.stage is Stage.UNKNOWN else trail.stage
    perhaps_done = stage in (Stage.UNKNOWN, Stage.SENDING)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        # No try has a time of its own: a timeout is the call's.
        late = DeadlineExceeded(f"{where}: {_LATE.get(stage, 'no answer in time')}", request_id=request_id)
        return Failure(late, passing=False, perhaps_done=perhaps_done)
    if isinstance(error, httpx.TransportError):
        broken = UnreachableError(text, request_id=request_id)
        return Failure(broken, passing=True, perhaps_done=perhaps_done)
    return Failure(InvalidAnswer(text, request_id=request_id), passing=False, perhaps_done=True)


def _stage_of(error: Exception) -> Stage:
    """What an error alone says, where the transport told nothing."""
    if isinstance(error, httpx.PoolTimeout):
        return Stage.WAITING
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError | httpx.ProxyError):
        return Stage.CONNECTING
    return Stage.UNKNOWN


def retry_after(headers: Mapping[str, str]) -> float | None:
    """In how many seconds the server wants to be asked again; None where it does not say, or not so that it is read."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 10 else _LONGEST
    at = _date(text)
    if at is None:
        return None
    # By the server's own clock where it tells it: ours may be wrong.
    now = _date(headers.get("Date", ""))
    return min(_LONGEST, max(0.0, at - (time.time() if now is None else now)))


def _date(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text)
        seconds = (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return seconds if math.isfinite(seconds) else None


def _api_error(response: httpx.Response, request_id: str) -> ApiError:
    try:
        problem: Any = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):  # a proxy's page, or no promptmux at all
        problem = {}
    return ApiError(
        response.status_code,
        str(problem.get("code", "http_error")),
        str(problem.get("detail") or problem.get("title") or response.reason_phrase),
        str(problem.get("request_id") or request_id),
        retry_after(response.headers),
    )
