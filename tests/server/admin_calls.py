"""What the tests of the admin API share."""

from typing import Any

import httpx

from prompt_store import version_of
from tests.server.conftest import Running

OCTETS = {"Content-Type": "application/octet-stream"}


async def put(server: Running, data: bytes, *, task: str = "sentiment", **params: Any) -> httpx.Response:
    path = f"/admin/tasks/{task}/versions/{params.pop('version', None) or version_of(data)}"
    return await server.admin.put(path, content=data, headers=OCTETS, params=params)


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]
