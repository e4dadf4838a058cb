"""What can go wrong between a client and a server; knows no routes.

ClientError
 ├ UnreachableError   nobody answered, or not in time
 └ ApiError           the server said no: status, stable code, request id
"""

from __future__ import annotations


class ClientError(Exception):
    """The root: its text is one line for a person."""


class UnreachableError(ClientError):
    """The server could not be reached or did not answer in time."""


class ApiError(ClientError):
    """An error answer (problem+json, RFC 9457). `code` is stable, the text is for people."""

    def __init__(self, status: int, code: str, detail: str, request_id: str | None) -> None:
        named = f" (request {request_id})" if request_id else ""
        super().__init__(f"{status} {code}: {detail}{named}")
        self.status, self.code, self.detail, self.request_id = status, code, detail, request_id
