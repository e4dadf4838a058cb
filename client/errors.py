"""What can go wrong between a client and a server, and what to do about it; knows no routes.

ClientError
 ├ InvalidCall          it cannot be sent as it is: a bad URL, key, text or header (a ValueError, too)
 ├ UnreachableError     nobody answered, or the connection broke
 │  └ DeadlineExceeded  the call's time is over (a TimeoutError, too)
 ├ ApiError             the server said no: status, stable code, when to ask again
 ├ InvalidAnswer        what answered is no promptmux
 └ OutcomeUnknown       a write that may have taken effect, or not
"""

from __future__ import annotations

from typing import Final

_BY_CODE: Final = {
    "unauthenticated": "pass key=… (promptmux key makes one)",
    "forbidden": "the key lacks the scope of this port: infer for the public one, admin for the other",
    "unknown_task": "look which tasks there are; one that was published a moment ago is seen with min_revision",
    "unknown_route": "is this the right port? /classify is on the public one, /admin on the admin port",
    "overloaded": "the server is full: send less at once, or add servers",
    "not_ready": "the server starts: wait for /readyz, or ask another one",
    "draining": "the server stops: ask another one",
    "request_timeout": "the server is too slow for this load: send less at once, or add servers",
    "revision_not_reached": "this server is behind its store: its /readyz shows how far; ask again or ask another one",
    "revision_lost": "the store lost that history: publish again what is missing, and ask without min_revision",
    "revision_conflict": "somebody else moved the alias: look where it leads, and decide again",
    "version_in_use": "an alias leads to it: move or delete the alias first",
    "store_unavailable": "the store is away: promptmux doctor says what is wrong with it",
    "prompt_unavailable": "this server cannot load the task's prompt: its log says why; promptmux rollback goes back",
    "numerical_error": "the prompt version fails on this text: promptmux rollback goes back to another one",
    "inference_failed": "the model failed on this text: the server's log says how, under the request id",
}


class ClientError(Exception):
    """The root: its text is one line for a person, `advice` another: what to do.

    `request_id` is what the call is called in the server's log, where it got that far; `tries` how often it was sent.
    """

    advice: str = ""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.tries = 0


class InvalidCall(ClientError, ValueError):
    """What was asked for cannot be sent; nothing was."""

    advice = "change the call: it was not sent"


class UnreachableError(ClientError):
    """The server could not be reached, or the connection broke before its answer was complete."""

    advice = "is the server up, and is this its address? its /healthz answers while it lives"


class DeadlineExceeded(UnreachableError, TimeoutError):
    """The call was not done within its `timeout`, all tries together."""

    advice = "give it more time, or the server less to do; `Server-Timing` of an answer says where time goes"


class ApiError(ClientError):
    """An error answer (problem+json, RFC 9457). `code` is stable, the text is for people.

    `retry_after` is in how many seconds the server wants to be asked again, None where it did not say.
    """

    def __init__(
        self, status: int, code: str, detail: str, request_id: str | None, retry_after: float | None = None
    ) -> None:
        named = f" (request {request_id})" if request_id else ""
        super().__init__(f"{status} {code}: {detail}{named}", request_id=request_id)
        self.status, self.code, self.detail, self.retry_after = status, code, detail, retry_after
        if status < 500:
            general = "the request is at fault: sent again as it is, it fails again"
        else:
            general = "the server is at fault: its log has it under the request id"
        self.advice = _BY_CODE.get(code, general)


class InvalidAnswer(ClientError):
    """Something answered that is no promptmux: a proxy's page, another service."""

    advice = "is this the server's address, and is nothing in between that answers in its place?"


class OutcomeUnknown(ClientError):
    """A write whose answer was lost: it may have taken effect. `__cause__` is what went wrong."""

    advice = "look what holds now (AdminClient.task, promptmux tasks TASK), and decide again"

    def __init__(self, cause: ClientError) -> None:
        super().__init__(f"{cause}; whether it took effect is not known", request_id=cause.request_id)
        self.tries = cause.tries
        self.__cause__ = cause
