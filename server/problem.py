"""The one place where an exception becomes an answer: RFC 9457 problem+json, plus what vLLM's clients read.

Owns: the shape of an error body. Must not know: which route failed, or why. An exception that was not made
for callers says nothing about itself.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from prompt_store import PromptStoreError
from server.errors import ServerError


def status_of(error: BaseException) -> int:
    """The HTTP status of any exception: its class says it, or the nearest base that does."""
    if isinstance(error, ServerError | PromptStoreError):
        return error.status
    if isinstance(error, RequestValidationError):
        return 422
    return error.status_code if isinstance(error, HTTPException) else 500


def code_of(error: BaseException) -> str:
    """The stable `code` that the answer to an exception carries."""
    if isinstance(error, ServerError | PromptStoreError):
        return error.code
    return _http_code(status_of(error))


def problem(error: BaseException, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Any exception as status, headers and a problem+json body. One not made for callers says nothing."""
    status = status_of(error)
    known = isinstance(error, ServerError | PromptStoreError)
    code = code_of(error)
    title = code.replace("_", " ").capitalize() if known else _phrase(status)
    detail = str(error) if known else _http_detail(status)
    headers = {str(k): str(v) for k, v in (getattr(error, "headers", None) or {}).items()}
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        headers.setdefault("Retry-After", str(max(1, math.ceil(retry_after))))
    body: dict[str, Any] = {
        "type": f"urn:promptmux:error:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "error": {
            "message": detail,
            "type": _phrase(status).replace(" ", "") + "Error",
            "param": getattr(error, "param", None),
            "code": status,
        },
    }
    current = getattr(error, "current", None)
    if isinstance(current, int):  # RevisionConflict: what the caller needs for the next try
        body["current_revision"] = current
        headers.setdefault("ETag", f'"{current}"')
    return status, headers, orjson.dumps(body)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


_HTTP_CODES = {404: "unknown_route", 405: "method_not_allowed", 422: "invalid_request"}
_HTTP_DETAILS = {
    404: "there is no such route; /docs lists them",
    405: "the route does not take this method",
    422: "a path or query parameter has the wrong form",
    500: "something went wrong on the server; the log has it under this request id",
}


def _http_code(status: int) -> str:
    return _HTTP_CODES.get(status, "internal_error" if status >= 500 else "bad_request")


def _http_detail(status: int) -> str:
    return _HTTP_DETAILS.get(status, _phrase(status))
