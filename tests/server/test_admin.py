import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

import server.routes
from prompt_store import BackboneRef, Golden, version_of
from server.catalogue import Catalogue, ServedTask
from server.prompt_sync import PromptSync
from tests.server.conftest import Running, Start
from tests.server.fakes import REF, prompt_bytes

OCTETS = {"Content-Type": "application/octet-stream"}
NEW = {"If-None-Match": "*"}
OLD, BETTER = prompt_bytes(), prompt_bytes(favours=1)


async def put(server: Running, data: bytes, *, task: str = "sentiment", **params: Any) -> httpx.Response:
    path = f"/admin/tasks/{task}/versions/{params.pop('version', None) or version_of(data)}"
    return await server.admin.put(path, content=data, headers=OCTETS, params=params)


async def point(
    server: Running, body: dict[str, Any], headers: dict[str, str], *, alias: str = "current", **params: Any
) -> httpx.Response:
    path = f"/admin/tasks/sentiment/aliases/{alias}"
    return await server.admin.put(path, json=body, headers=headers, params=params)


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


async def test_upload_alias_serve_roll_back(start: Start) -> None:
    async with start() as server:
        created = await put(server, BETTER)
        assert (created.status_code, created.json()["created"]) == (201, True)
        assert created.headers["etag"] == f'"{version_of(BETTER)}"'
        again = await put(server, BETTER)
        assert (again.status_code, again.json()["created"]) == (200, False)
        assert (await server.classify()).json()["version"] == version_of(OLD)

        tag = (await server.admin.get("/admin/tasks/sentiment/aliases/current")).headers["etag"]
        moved = await point(server, {"version": version_of(BETTER)}, {"If-Match": tag})
        assert moved.status_code == 200
        assert moved.headers["etag"] != tag
        # Served by the time that the answer is there.
        assert (await server.classify()).json()["version"] == version_of(BETTER)

        back = await server.admin.post(
            "/admin/tasks/sentiment/rollback",
            json={"version": version_of(OLD)},
            headers={"If-Match": moved.headers["etag"]},
        )
        assert back.status_code == 200
        assert (await server.classify()).json()["version"] == version_of(OLD)
        events = (await server.admin.get("/admin/tasks/sentiment/history")).json()["events"]
        assert [event["action"] for event in events] == ["alias", "alias", "publish", "alias", "publish"]


async def test_a_write_says_what_it_overwrites(start: Start) -> None:
    async with start() as server:
        body = {"version": version_of(OLD)}
        assert code(await point(server, body, {})) == (428, "precondition_required")
        assert code(await point(server, body, {"If-None-Match": '"5"'})) == (428, "precondition_required")
        assert code(await point(server, body, {"If-Match": "1", **NEW})) == (428, "precondition_required")
        assert code(await point(server, body, NEW)) == (412, "revision_conflict")
        conflict = await point(server, body, {"If-Match": '"999"'})
        assert code(conflict) == (412, "revision_conflict")
        assert conflict.headers["etag"] == f'"{conflict.json()["current_revision"]}"'
        for bad in ("x", '"-1"', '"1', "*", "9" * 30, "٣"):
            answer = await point(server, body, {"If-Match": bad.encode()})  # type: ignore[dict-item]
            assert answer.status_code in (412, 422)
        assert (await point(server, body, {"If-Match": conflict.headers["etag"]})).status_code == 200
        for method, path in (("POST", "rollback"), ("DELETE", "aliases/current")):
            answer = await server.admin.request(method, f"/admin/tasks/sentiment/{path}", json=body)
            assert code(answer) == (428, "precondition_required")


async def test_of_two_writers_one_wins(start: Start) -> None:
    async with start() as server:
        await put(server, BETTER)
        tag = (await server.admin.get("/admin/tasks/sentiment/aliases/current")).headers["etag"]
        targets = [version_of(OLD), version_of(BETTER)] * 5
        answers = await asyncio.gather(
            *(point(server, {"version": target}, {"If-Match": tag}) for target in targets)
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (415, "not_safetensors")),
        (b"\x80\x04\x95pickle", (415, "not_safetensors")),
        (OLD[:-5], None),
        (OLD + b"more", None),
        (prompt_bytes("other"), (422, "invalid_prompt")),
        (
            prompt_bytes(ref=BackboneRef.model_validate({**REF.model_dump(), "fingerprint": "0" * 64})),
            (422, "incompatible_prompt"),
        ),
        (prompt_bytes(golden=[Golden(text="x", label="positive")]), (422, "golden_mismatch")),
        (prompt_bytes(golden=[Golden(text="not-a-number", label="positive")]), (422, "not_finite")),
    ],
)
async def test_bad_uploads_leave_everything_as_it_was(start: Start, data: bytes, expected: Any) -> None:
    async with start() as server:
        answer = await put(server, data)
        got = code(answer)
        assert got[0] in (415, 422)
        assert expected is None or got == expected
        record = await server.apps.service.store.task("sentiment")
        assert [version.version for version in record.versions] == [version_of(OLD)]
        assert (await server.classify()).json()["version"] == version_of(OLD)


async def test_wrong_digests_and_names(start: Start) -> None:
    async with start() as server:
        assert code(await put(server, BETTER, version="0" * 64)) == (422, "digest_mismatch")
        assert code(await put(server, BETTER, version="nonsense")) == (422, "invalid_request")
        assert code(await put(server, BETTER, task="No")) == (422, "invalid_task_id")
        path = f"/admin/tasks/sentiment/versions/{version_of(BETTER)}"
        for kind in ("application/json", "multipart/form-data; boundary=x", "application/x-pickle"):
            answer = await server.admin.put(path, content=BETTER, headers={"Content-Type": kind})
            assert code(answer) == (415, "unsupported_media_type")


async def test_an_upload_has_a_cap(start: Start) -> None:
    async with start(max_prompt_bytes=100) as server:
        assert code(await put(server, BETTER)) == (413, "body_too_large")

        async def endless() -> Any:
            while True:
                yield b"x" * 2**16

        path = f"/admin/tasks/sentiment/versions/{version_of(BETTER)}"
        assert code(await server.admin.put(path, content=endless(), headers=OCTETS)) == (
            413,
            "body_too_large",
        )


async def test_an_alias_never_leads_to_what_this_server_cannot_serve(start: Start) -> None:
    async with start() as server:
        other = prompt_bytes(ref=BackboneRef.model_validate({**REF.model_dump(), "fingerprint": "e" * 64}))
        await server.apps.service.store.publish(other)  # by another tool: the store takes any backbone's
        tag = (await server.admin.get("/admin/tasks/sentiment/aliases/current")).headers["etag"]
        answer = await point(server, {"version": version_of(other)}, {"If-Match": tag})
        assert code(answer) == (422, "incompatible_prompt")
        record = await server.apps.service.store.task("sentiment")
        assert record.aliases["current"].version == version_of(OLD)
        unknown = await point(server, {"version": "0" * 64}, {"If-Match": tag})
        assert code(unknown) == (404, "unknown_version")


async def test_dry_run_changes_nothing(start: Start) -> None:
    async with start() as server:
        before = (await server.admin.get("/admin/tasks/sentiment")).json()
        tag = f'"{before["aliases"]["current"]["revision"]}"'
        assert (await put(server, BETTER, dry_run=True)).json()["created"] is True
        assert code(await put(server, OLD[:-1], dry_run=True))[0] == 422
        moved = await point(server, {"version": version_of(OLD)}, {"If-Match": tag}, dry_run=True)
        assert moved.json()["dry_run"] is True
        assert code(await point(server, {"version": version_of(OLD)}, NEW, dry_run=True))[0] == 412
        for path, headers, status in (
            ("/aliases/current", {"If-Match": tag}, 200),
            ("/aliases/current", {"If-Match": "999"}, 412),
            (f"/versions/{version_of(OLD)}", {}, 409),
            ("", {}, 409),
            ("?force=1", {}, 200),
        ):
            joined = f"/admin/tasks/sentiment{path}{'&' if '?' in path else '?'}dry_run=1"
            assert (await server.admin.delete(joined, headers=headers)).status_code == status
        assert (await server.admin.get("/admin/tasks/sentiment")).json() == before


async def test_deleting(start: Start) -> None:
    async with start() as server:
        await put(server, BETTER)
        assert code(await server.admin.delete(f"/admin/tasks/sentiment/versions/{version_of(OLD)}"))[0] == 409
        assert code(await server.admin.delete("/admin/tasks/sentiment")) == (409, "version_in_use")
        assert (
            await server.admin.delete(f"/admin/tasks/sentiment/versions/{version_of(BETTER)}")
        ).status_code == 200
        assert (await server.classify(version=version_of(BETTER))).json()["code"] == "unknown_version"
        tag = (await server.admin.get("/admin/tasks/sentiment/aliases/current")).headers["etag"]
        gone = await server.admin.delete("/admin/tasks/sentiment/aliases/current", headers={"If-Match": tag})
        assert gone.status_code == 200
        assert (await server.classify()).json()["code"] == "unknown_alias"
        assert (await server.admin.delete("/admin/tasks/sentiment")).status_code == 200
        assert (await server.classify()).json()["code"] == "unknown_task"
        assert code(await server.admin.get("/admin/tasks/sentiment")) == (404, "unknown_task")
        assert (await server.admin.get("/admin/tasks/sentiment/history")).json()["events"][0][
            "action"
        ] == "delete_task"


async def test_pages(start: Start) -> None:
    async with start() as server:
        for number in range(5):
            await put(server, prompt_bytes(f"t{number}"), task=f"t{number}")
        seen, after = [], None
        while True:
            params = {"limit": 2, **({"after": after} if after else {})}
            page = (await server.admin.get("/admin/tasks", params=params)).json()
            seen += [task["task_id"] for task in page["tasks"]]
            after = page["next"]
            if after is None:
                break
        assert seen == ["sentiment", "t0", "t1", "t2", "t3", "t4"]
        for bad in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after": "No/pe"}):
            assert code(await server.admin.get("/admin/tasks", params=bad))[0] == 422  # type: ignore[arg-type]


async def test_pages_hold_what_the_store_lost_and_no_more_than_was_asked_for(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def idle(_: PromptSync) -> None:
        """In the place of following the store, which would set right what this test makes up."""

    monkeypatch.setattr(PromptSync, "follow", idle)
    async with start(task=False) as server:
        service = server.apps.service
        for number in (2, 5):
            await put(server, prompt_bytes(f"t{number}"), task=f"t{number}")
        for number in (0, 1, 3, 4, 6, 7, 8):
            lost = ServedTask(f"t{number}", 0, {}, (), 0, missing_in_store=True)
            service.catalogue.put(lost)
        # Half restored: the store has it again, and it shows once.
        service.catalogue.put(replace(service.catalogue.get("t5"), missing_in_store=True))
        for limit in range(1, 11):
            pages, after = [], None
            while True:
                params = {"limit": limit, **({"after": after} if after else {})}
                page = (await server.admin.get("/admin/tasks", params=params)).json()
                pages.append([task["task_id"] for task in page["tasks"]])
                after = page["next"]
                if after is None:
                    break
            assert [task for page in pages for task in page] == [f"t{number}" for number in range(9)], limit
            assert max(map(len, pages)) <= limit
        ready = (await server.public.get("/readyz")).json()
        assert ready["store"]["missing_tasks"] == 8


async def test_a_list_of_all_tasks_is_made_once_for_all_who_ask(
    start: Start, eventually: Callable[[Callable[[], bool]], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    go_on = threading.Event()
    real = server.routes._models

    def slow(tasks: Any) -> bytes:
        made.append(len(tasks))
        go_on.wait(20)
        return real(tasks)

    monkeypatch.setattr(server.routes, "_models", slow)
    async with start() as running:
        asking = [asyncio.create_task(running.public.get("/tasks")) for _ in range(9)]
        await eventually(lambda: bool(made))
        asking[0].cancel()  # whoever leaves takes nothing from the others
        await running.publish(prompt_bytes("new"), "new")
        await running.apps.service.sync.refresh("new")
        late = asyncio.create_task(running.public.get("/v1/models"))
        await asyncio.sleep(0)
        go_on.set()
        for answer in await asyncio.gather(*asking[1:]):
            assert [task["id"] for task in answer.json()["data"]] in (["sentiment"], ["new", "sentiment"])
        # Whoever asks after a write sees it.
        assert [task["id"] for task in (await late).json()["data"]] == ["new", "sentiment"]
        assert made == [1, 2]


async def test_a_scrape_walks_no_table_that_the_loop_changes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        monkeypatch.setattr(Catalogue, "__iter__", None)
        text = (await server.admin.get("/metrics")).text
        assert "promptmux_catalogue_missing_tasks 0.0" in text
        assert "promptmux_catalogue_tasks 1.0" in text
        for tier in ("device", "host", "disk"):
            assert f'promptmux_tier_capacity_bytes{{tier="{tier}"}}' in text


async def test_weighted_aliases_and_downloads(start: Start) -> None:
    async with start() as server:
        await put(server, BETTER)
        targets = [{"version": version_of(OLD), "weight": 9}, {"version": version_of(BETTER), "weight": 1}]
        made = await point(server, {"targets": targets}, NEW, alias="canary")
        assert made.json()["targets"] == targets
        assert made.json()["version"] is None
        shown = (await server.admin.get("/admin/tasks/sentiment/aliases/canary")).json()
        assert shown["targets"] == targets
        for bad in ({}, {"version": version_of(OLD), "targets": targets}, {"targets": [targets[0]] * 2}):
            assert code(await point(server, bad, NEW, alias="other"))[0] == 422
        assert code(await point(server, {"targets": targets}, NEW, alias="Bad!")) == (422, "invalid_alias")
        got = await server.admin.get(f"/admin/tasks/sentiment/versions/{version_of(BETTER)}")
        assert got.content == BETTER
        assert got.headers["content-type"] == "application/octet-stream"
        missing = await server.admin.get(f"/admin/tasks/sentiment/versions/{'0' * 64}")
        assert code(missing) == (404, "unknown_version")


async def test_metrics_are_scraped_and_bounded(start: Start) -> None:
    async with start(metrics_tasks=("sentiment",)) as server:
        await server.classify()
        await server.classify(task_id="nope")
        await server.admin.get("/admin/tasks/sentiment/aliases/current")
        await server.public.get("/no/such/route")
        text = (await server.admin.get("/metrics")).text
        names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
        ours = {name for name in names if not name.startswith(("process_", "python_"))}
        assert all(name.startswith("promptmux_") for name in ours)
        assert 'promptmux_task_requests_total{task="sentiment"} 1.0' in text
        assert "nope" not in text
        assert 'route="/classify",status="404"' in text
        assert 'route="/admin/tasks/{task_id}/aliases/{alias}",status="200"' in text
        assert 'route="_unknown",status="404"' in text


@pytest.mark.parametrize("path", ["/nope", "/admin", "/classify", "/admin/tasks/a/b/c/d", "/admin/tasks/"])
async def test_unknown_routes_are_problems(start: Start, path: str) -> None:
    async with start(task=False) as server:
        assert code(await server.admin.get(path)) == (404, "unknown_route")
        assert code(await server.admin.request("PATCH", "/admin/tasks")) == (405, "method_not_allowed")
        assert code(await server.public.get("/classify")) == (405, "method_not_allowed")


async def test_the_documentation_is_true(start: Start) -> None:
    async with start() as server:
        schema = (await server.public.get("/openapi.json")).json()
        assert set(schema["paths"]) == {"/classify", "/healthz", "/readyz", "/v1/models", "/tasks"}
        fields = schema["components"]["schemas"]["ClassifyBody"]["properties"]
        assert {"task_id", "model", "input", "version", "truncate_prompt_tokens"} <= set(fields)
        headers = {parameter["name"] for parameter in schema["paths"]["/classify"]["post"]["parameters"]}
        assert headers == {"x-request-key", "x-min-revision"}
        assert (await server.public.get("/docs")).status_code == 200
        admin = (await server.admin.get("/openapi.json")).json()
        assert "/admin/tasks/{task_id}/versions/{version}" in admin["paths"]
        for document in (schema, admin):
            text = str(document)
            for reference in {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}:
                assert reference.rstrip("'}") in document["components"]["schemas"], reference


async def test_the_documentation_page_needs_no_internet(start: Start) -> None:
    async with start() as server:
        for app in (server.public, server.admin):
            page = (await app.get("/docs")).text
            assert "https://" not in page
            script = re.search(r'src="([^"]+swagger-ui-bundle\.js)"', page)
            assert script is not None
            assert (await app.get(script[1])).status_code == 200


async def test_writes_say_where_the_store_stands_and_what_it_promised(start: Start) -> None:
    async with start() as server:
        tried = await put(server, BETTER, dry_run=True)
        assert "store_revision" not in tried.json()
        assert "X-Store-Revision" not in tried.headers
        numbers = []
        answers = [await put(server, BETTER)]
        tag = (await server.admin.get("/admin/tasks/sentiment/aliases/current")).headers["etag"]
        answers.append(await point(server, {"version": version_of(BETTER)}, {"If-Match": tag}))
        answers.append(await point(server, {"version": version_of(OLD)}, NEW, alias="spare"))
        answers.append(
            await server.admin.delete(
                "/admin/tasks/sentiment/aliases/spare", headers={"If-Match": answers[-1].headers["etag"]}
            )
        )
        answers.append(await server.admin.delete(f"/admin/tasks/sentiment/versions/{version_of(OLD)}"))
        answers.append(await server.admin.delete("/admin/tasks/sentiment?force=true"))
        for answer in answers:
            assert answer.is_success, answer.text
            body = answer.json()
            assert body["durability"] == {"durable": True, "fsync": "always", "replicas": 0}
            revision = body["store_revision"]
            assert answer.headers["X-Store-Revision"] == f"{revision['epoch']}:{revision['number']}"
            numbers.append(revision["number"])
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
