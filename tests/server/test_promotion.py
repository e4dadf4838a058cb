"""A split's traffic is shown, and a canary becomes current."""

from collections import Counter
from typing import Any

from prompt_store import version_of
from tests.server.conftest import Start
from tests.server.splits import NAN, OTHER, STABLE, ask, ask_many, split, targets


async def test_traffic_of_a_split_is_shown_and_scraped(start: Start) -> None:
    async with start() as server:
        await server.classify()
        plain = (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"]["targets"]
        assert "traffic" not in plain[0]
        await split(server, (STABLE, 50), (OTHER, 50))
        answers = await ask_many(server, range(40))
        drawn = Counter(answer.json()["version"] for answer in answers)
        shown = (await server.admin.get("/admin/tasks/sentiment")).json()["aliases"]["current"]["targets"]
        for target in shown:
            counted = target["traffic"]
            assert counted["requests"] == counted["scores"]["texts"] == drawn[target["version"]] > 5
            assert 0.8 < counted["scores"]["mean"] <= 1.0
            labels = {"task": "sentiment", "version": target["version"][:12]}
            assert server.counted("version_requests_total", **labels) == counted["requests"]
        text = (await server.admin.get("/metrics")).text
        assert "promptmux_version_score_bucket" in text
        await split(server, (STABLE, 1))
        assert 'task="sentiment"' not in (await server.admin.get("/metrics")).text


async def test_a_listed_task_has_series_without_a_split(start: Start) -> None:
    async with start(metrics_tasks=("sentiment",)) as server:
        await server.classify(["a", "b", "c"])
        labels = {"task": "sentiment", "version": version_of(STABLE)[:12]}
        assert server.counted("version_requests_total", **labels) == 1
        assert server.counted("version_score_count", **labels) == 3


async def test_promotion(start: Start) -> None:
    async with start() as server:
        await split(server, (STABLE, 95), (OTHER, 5))
        path = "/admin/tasks/sentiment/promote"
        tag = (await server.admin.get("/admin/tasks/sentiment/aliases/current")).headers["etag"]
        body = {"version": version_of(OTHER)}

        async def promote(
            body: dict[str, Any], headers: dict[str, str], **params: Any
        ) -> tuple[int, dict[str, Any]]:
            answer = await server.admin.post(path, json=body, headers=headers, params=params)
            return answer.status_code, answer.json()

        status, answer = await promote(body, {})
        assert (status, answer["code"]) == (428, "precondition_required")
        status, answer = await promote(body, {"If-Match": '"1"'})
        assert (status, answer["code"]) == (412, "revision_conflict")
        await server.apps.service.store.publish(NAN)
        status, answer = await promote({"version": version_of(NAN)}, {"If-Match": tag})
        assert (status, answer["code"]) == (422, "invalid_request")
        for bad in ({}, {"version": "x"}, {**body, "alias": "Bad!"}, {**body, "weight": 1}):
            assert (await promote(bad, {"If-Match": tag}))[0] == 422
        assert (await promote({**body, "alias": "nope"}, {"If-Match": tag}))[0] == 404
        status, answer = await promote(body, {"If-Match": tag}, dry_run=True)
        assert (status, answer["dry_run"], answer["version"]) == (200, True, version_of(OTHER))
        assert len(await targets(server)) == 2
        status, answer = await promote(body, {"If-Match": tag})
        assert (status, answer["version"]) == (200, version_of(OTHER))
        assert {(await ask(server, number)).json()["version"] for number in range(20)} == {version_of(OTHER)}
        assert (await promote(body, {"If-Match": tag}))[0] == 412
