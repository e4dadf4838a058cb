"""What can go wrong while serving.

Owns: the tree below; each class carries its status and a stable code, of which `problem` makes an answer.
Must not know: routes, the engine, the device. Messages never hold a caller's text, a path or another
library's message.

    ServerError                  500 internal_error
    ├── RequestError             400 bad_request
    │   ├── InvalidHttp          400 invalid_http
    │   ├── HeadTooLarge         431 head_too_large
    │   ├── HeadTimeout          408 head_timeout
    │   ├── InvalidJson          400 invalid_json
    │   ├── InvalidRequest       422 invalid_request
    │   │   ├── EmptyInput       422 empty_input
    │   │   └── NotOffered       422 not_offered          a vLLM option that this server does not have
    │   ├── TextTooLong          413 text_too_long
    │   ├── TooManyInputs        413 too_many_inputs
    │   ├── BodyTooLarge         413 body_too_large
    │   ├── UnsupportedMedia     415 unsupported_media_type
    │   ├── BodyTimeout          408 body_timeout
    │   ├── IncompleteBody       400 incomplete_body
    │   ├── Unauthenticated      401 unauthenticated
    │   ├── Forbidden            403 forbidden
    │   ├── PreconditionRequired 428 precondition_required
    │   ├── RevisionLost         412 revision_lost        the store lost the history that the revision is of
    │   └── PromptRefused        422 prompt_refused
    │       ├── GoldenMismatch   422 golden_mismatch      a golden example comes out with another label
    │       └── NotFinite        422 not_finite           scores that are not numbers
    ├── Overloaded               429 overloaded
    ├── InferenceFailed          500 inference_failed     the forward raised
    ├── NumericalError           500 numerical_error      a row's scores are not numbers: the prompt's fault
    └── Unavailable              503 unavailable
        ├── NotReady             503 not_ready
        ├── Draining             503 draining
        ├── RequestTimeout       503 request_timeout
        ├── RevisionNotReached   503 revision_not_reached this server has not seen the revision yet
        └── PromptUnavailable    503 prompt_unavailable   the task's prompt cannot be loaded here
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final, Self


class ServerError(Exception):
    """The base of the tree: an answer that is not a success."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, detail: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.param = param
        self.headers = dict(headers or {})

    def closing(self) -> Self:
        """The same error, closing the connection with its answer."""
        self.headers["Connection"] = "close"
        return self


class RequestError(ServerError):
    """The request is at fault."""

    status = 400
    code = "bad_request"


class InvalidHttp(RequestError):
    """What arrived is no HTTP request."""

    code = "invalid_http"


class HeadTooLarge(RequestError):
    """More headers than a request may have."""

    status = 431
    code = "head_too_large"


class HeadTimeout(RequestError):
    """The request's head did not arrive in time."""

    status = 408
    code = "head_timeout"


class InvalidJson(RequestError):
    """The body is no JSON, or JSON with two meanings."""

    code = "invalid_json"


class InvalidRequest(RequestError):
    """Well-formed, but not a request this route takes."""

    status = 422
    code = "invalid_request"


class EmptyInput(InvalidRequest):
    """There is no text to classify."""

    code = "empty_input"


class NotOffered(InvalidRequest):
    """An option of vLLM's API that this server knows and does not have."""

    code = "not_offered"


class TextTooLong(RequestError):
    """A text above the cap on characters."""

    status = 413
    code = "text_too_long"


class TooManyInputs(RequestError):
    """More texts than one request may bring."""

    status = 413
    code = "too_many_inputs"


class BodyTooLarge(RequestError):
    """A body above the cap on bytes."""

    status = 413
    code = "body_too_large"


class UnsupportedMedia(RequestError):
    """A content type or content encoding that the route does not read."""

    status = 415
    code = "unsupported_media_type"


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "body_timeout"


class IncompleteBody(RequestError):
    """The caller closed before the body was complete."""

    code = "incomplete_body"


class Unauthenticated(RequestError):
    """No key, or none that is known."""

    status = 401
    code = "unauthenticated"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(RequestError):
    """The key is known and lacks the scope."""

    status = 403
    code = "forbidden"


class PreconditionRequired(RequestError):
    """A write that must say what it believes to overwrite."""

    status = 428
    code = "precondition_required"


class RevisionLost(RequestError):
    """The revision that the caller demands is of a history that the store has lost; it will not come."""

    status = 412
    code = "revision_lost"


class PromptRefused(RequestError):
    """A valid prompt file that must not be served."""

    status = 422
    code = "prompt_refused"


class GoldenMismatch(PromptRefused):
    """A golden example of the prompt comes out with another label on this server."""

    code = "golden_mismatch"


class NotFinite(PromptRefused):
    """The prompt makes scores that are not numbers."""

    code = "not_finite"


class Overloaded(ServerError):
    """The queue is full."""

    status = 429
    code = "overloaded"

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, math.ceil(retry_after)))})


class InferenceFailed(ServerError):
    """The forward of the batch raised."""

    code = "inference_failed"


class NumericalError(ServerError):
    """A row's scores are not numbers."""

    code = "numerical_error"


class Unavailable(ServerError):
    """Not now."""

    status = 503
    code = "unavailable"

    def __init__(self, detail: str, *, retry_after: float = 1.0) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, math.ceil(retry_after)))})


class NotReady(Unavailable):
    """The model or the store is not up yet."""

    code = "not_ready"


class Draining(Unavailable):
    """The server is about to stop."""

    code = "draining"


class RequestTimeout(Unavailable):
    """The answer was not ready in time."""

    code = "request_timeout"


class RevisionNotReached(Unavailable):
    """The catalogue of this server is older than the caller demands."""

    code = "revision_not_reached"


class PromptUnavailable(Unavailable):
    """The task exists, but its prompt cannot be loaded on this server."""

    code = "prompt_unavailable"


# What may be a prompt version's fault; everything else is the caller's, the queue's or the store's.
PROMPT_FAULTS: Final = (NumericalError, InferenceFailed, PromptUnavailable)
