"""Uploads, aliases, roll back and deletion by the admin API."""

import asyncio
from typing import Any

import httpx
import pytest

from prompt_store import BackboneRef, Golden, version_of
from tests.server.admin_calls import OCTETS, code, put
from tests.server.conftest import Running, Start
from tests.server.fakes import REF, prompt_bytes

NEW = {"If-None-Match": "*"}
OLD, BETTER = prompt_bytes(), prompt_bytes(favours=1)


async def point(
    server: Running, body: dict[str, Any], headers: dict[str, str], *, alias: str = "current", **params: Any
) -> httpx.Response:
    path = f"/admin/tasks/sentiment/aliases/{alias}"
    return await server.admin.put(path, json=body, headers=headers, params=params)


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
