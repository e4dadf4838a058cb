"""The routes of both apps as they stand in OpenAPI, and which keys open them. Knows nothing of any page."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import httpx

from server import Settings, create_apps
from server.auth import SCOPES, Keyring, new_key, parse_keys


async def schemas() -> list[tuple[str, dict[str, list[str]], dict[str, Any]]]:
    """Each port's name, which scopes open each of its routes, and its OpenAPI document."""
    keys = {scope: new_key(scope, [scope]) for scope in SCOPES}
    keyring = Keyring(parse_keys([line for _, line in keys.values()]))
    with tempfile.TemporaryDirectory() as folder:
        apps = create_apps(Settings(store=f"file://{folder}/store"), keyring)
        found = []
        for name, app in (("The public port", apps.public), ("The admin port", apps.admin)):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://docs") as client:
                schema = (await client.get("/openapi.json")).json()
                routes = [(m.upper(), path) for path, methods in schema["paths"].items() for m in methods]
                scopes = {
                    f"{method} {path}": await open_to(client, method, path, keys) for method, path in routes
                }
                found.append((name, scopes, schema))
        await apps.service.store.aclose()
        return found


async def open_to(
    client: httpx.AsyncClient, method: str, path: str, keys: Mapping[str, tuple[str, str]]
) -> list[str]:
    """The scopes that a route takes, by asking it; none where it asks for no key."""
    if (await client.request(method, path)).status_code != 401:
        return []
    taken = []
    for scope, (token, _) in keys.items():
        answer = await client.request(method, path, headers={"Authorization": f"Bearer {token}"})
        if answer.status_code != 403:
            taken.append(scope)
    return taken
