"""What the admin API lists and documents."""

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

import server.routes
from server.catalogue import Catalogue, ServedTask
from server.prompt_sync import PromptSync
from tests.server.admin_calls import code, put
from tests.server.conftest import Start
from tests.server.fakes import prompt_bytes


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
