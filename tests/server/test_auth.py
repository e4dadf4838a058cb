import hashlib
import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from server.auth import SCOPES, Keyring, is_loopback, new_key, parse_keys
from server.errors import Forbidden, Unauthenticated
from tests.server.conftest import Start

OPEN = {"/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json"}
SCRAPED = ("admin", "/metrics")  # port and path of the one route that has a scope of its own


def test_a_new_key_opens_what_its_line_admits() -> None:
    token, line = new_key("app", ["infer"])
    keyring = Keyring(parse_keys([line]))
    assert keyring.authorize(f"Bearer {token}", "infer").name == "app"
    assert keyring.authorize(f"bearer {token}", "infer").name == "app"
    with pytest.raises(Forbidden):
        keyring.authorize(f"Bearer {token}", "admin")
    assert token not in line


def test_several_keys_live_side_by_side() -> None:
    made = [new_key(f"k{number}", SCOPES) for number in range(3)]
    keyring = Keyring(parse_keys([line for _, line in made]))
    for number, (token, _) in enumerate(made):
        assert keyring.authorize(f"Bearer {token}", "admin").name == f"k{number}"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer wrong", "abc", "Bearer é\x00"]
)
def test_anything_else_is_refused(header: str | None) -> None:
    _, line = new_key("app", SCOPES)
    with pytest.raises(Unauthenticated):
        Keyring(parse_keys([line])).authorize(header, "infer")


def test_a_hash_is_not_a_key() -> None:
    _, line = new_key("app", SCOPES)
    with pytest.raises(Unauthenticated):
        Keyring(parse_keys([line])).authorize(f"Bearer {line.rpartition(':')[2]}", "infer")


@pytest.mark.parametrize(
    "line",
    [
        "app",
        "app:infer",
        "app:infer:secret",
        "app:root:" + "0" * 64,
        "app::" + "0" * 64,
        "a b:infer:" + "0" * 64,
    ],
)
def test_a_line_that_is_no_key_is_refused_without_showing_it(line: str) -> None:
    with pytest.raises(ValueError, match="API key 1") as caught:
        parse_keys([line])
    assert "secret" not in str(caught.value)


def test_comments_blank_lines_and_repeated_names() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    assert len(parse_keys(["# mine", "", f"app:infer+admin:{digest}"])) == 1
    with pytest.raises(ValueError, match="repeats"):
        parse_keys([f"app:infer:{digest}", f"app:admin:{digest}"])


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path that the app answers, from its own documentation and from its router."""
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path
    for route in app.router.routes:
        path = getattr(route, "path", None)
        for method in getattr(route, "methods", None) or ():
            if path:
                yield method, path


async def test_every_route_is_closed_to_all_but_its_scope(start: Start) -> None:
    keys = {scope: new_key(scope, [scope]) for scope in SCOPES}
    keyring = Keyring(parse_keys([line for _, line in keys.values()]))
    bearers = {"no key": {}, "wrong key": {"Authorization": "Bearer wrong"}}
    bearers |= {name: {"Authorization": f"Bearer {token}"} for name, (token, _) in keys.items()}
    checked = 0
    async with start(keyring=keyring) as server:
        for boundary, client, scope in (
            (server.apps.public, server.public, "infer"),
            (server.apps.admin, server.admin, "admin"),
        ):
            for method, template in sorted(set(routes_of(boundary._app))):
                path = re.sub(r"\{\w+\}", "x", template)
                own = {"metrics", "admin"} if (scope, template) == SCRAPED else {scope}
                for who, headers in bearers.items():
                    answer = await client.request(method, path, headers=headers)
                    expected_open = template in OPEN or who in own
                    refused = 401 if who in ("no key", "wrong key") else 403
                    if expected_open:
                        assert answer.status_code not in (401, 403), (method, path, who)
                    else:
                        assert answer.status_code == refused, (method, path, who)
                    checked += 1
    assert checked > 80


async def test_a_key_that_scrapes_changes_nothing(start: Start) -> None:
    token, line = new_key("prometheus", ["metrics"])
    headers = {"Authorization": f"Bearer {token}"}
    async with start(keyring=Keyring(parse_keys([line]))) as server:
        scraped = await server.admin.get("/metrics", headers=headers)
        assert (scraped.status_code, "promptmux_ready 1.0" in scraped.text) == (200, True)
        assert (await server.public.get("/metrics", headers=headers)).status_code == 404
        for path in ("/admin/tasks", "/admin/tasks/sentiment", "/admin/tasks/sentiment/history"):
            refused = await server.admin.get(path, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
        deleted = await server.admin.delete("/admin/tasks/sentiment?force=true", headers=headers)
        assert deleted.status_code == 403
        asked = await server.public.post(
            "/classify", json={"task_id": "sentiment", "input": "x"}, headers=headers
        )
        assert asked.status_code == 403
        assert "the API key lacks the scope infer" in asked.json()["detail"]


async def test_an_unknown_route_tells_a_stranger_nothing_more(start: Start) -> None:
    _, line = new_key("app", SCOPES)
    async with start(keyring=Keyring(parse_keys([line]))) as server:
        for client in (server.public, server.admin):
            for path in ("/nope", "/admin/tasks/../../healthz", "/classify/", "//classify", "/CLASSIFY"):
                answer = await client.post(path, json={})
                assert answer.status_code in (401, 404, 405), path


async def test_the_history_names_the_key_that_wrote(start: Start) -> None:
    from prompt_store import version_of
    from tests.server.fakes import prompt_bytes

    token, line = new_key("alice", ["admin"])
    async with start(keyring=Keyring(parse_keys([line]))) as server:
        data = prompt_bytes("mine")
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
        path = f"/admin/tasks/mine/versions/{version_of(data)}"
        assert (await server.admin.put(path, content=data, headers=headers)).status_code == 201
        history = (await server.admin.get("/admin/tasks/mine/history", headers=headers)).json()
        assert history["events"][0]["actor"] == "alice"
