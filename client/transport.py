"""Owns one HTTP exchange: the key, the timeout, and errors as exceptions. Knows no routes."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from client.errors import ApiError, UnreachableError

DEFAULT_TIMEOUT = 30.0


class Connection:
    """A context manager around an httpx client; base of `Client` and `AdminClient`."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`key` is sent as a bearer token, `timeout` is in seconds; `transport` replaces the network in
        tests.
        """
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
    ) -> httpx.Response:
        try:
            response = self._http.request(
                method, path, json=json, content=content, headers=headers, params=params
            )
        except httpx.InvalidURL as error:
            raise UnreachableError(f"{self._http.base_url}: {error}") from None
        except httpx.HTTPError as error:
            raise UnreachableError(f"{self._http.base_url}: {error or type(error).__name__}") from None
        if not response.is_success:
            raise _api_error(response)
        return response


def _api_error(response: httpx.Response) -> ApiError:
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
        problem.get("request_id"),
    )
