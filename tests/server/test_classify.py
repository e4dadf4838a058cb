import asyncio
from pathlib import Path
from typing import Any

import pytest

from prompt_store import Golden, MaxLength, Target, version_of
from server.body import BodyLimits
from server.classify import ClassifyLimits, to_call
from server.schemas import ClassifyBody
from tests.server.conftest import Eventually, Start
from tests.server.fakes import FakeBackbone, prompt_bytes


async def test_the_answer_is_vllms_and_more(start: Start) -> None:
    async with start(task=False) as server:
        version = await server.publish(prompt_bytes(template="{soft:3}{text}", favours=1))
        await server.apps.service.sync.refresh("sentiment")
        response = await server.classify("b one two", request_id="mine")
    answer = response.json()
    row = answer["data"][0]
    assert response.headers["x-prompt-version"] == version
    assert set(answer) == {
        "id", "object", "created", "model", "task_id", "version", "labels", "data", "usage",
    }  # fmt: skip
    assert answer["id"] == "classify-mine"
    assert (answer["object"], answer["model"], answer["task_id"]) == ("list", "sentiment", "sentiment")
    assert answer["labels"] == ["negative", "positive"]
    assert (row["index"], row["label"], row["num_classes"]) == (0, "positive", 2)
    assert row["score"] == max(row["probs"])
    assert sum(row["probs"]) == pytest.approx(1.0)
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "virtual_tokens": 3,
        "total_tokens": 6,
        "completion_tokens": 0,
    }
    timings = response.headers["server-timing"]
    assert all(f"{part};dur=" in timings for part in ("queue", "tokenize", "forward"))


async def test_the_request_id_is_given_back_or_made(start: Start) -> None:
    async with start() as server:
        given = await server.public.post(
            "/classify", json={"model": "sentiment", "input": "x"}, headers={"X-Request-ID": "abc-1"}
        )
        assert given.headers["x-request-id"] == "abc-1"
        assert given.json()["id"] == "classify-abc-1"
        for bad in ("a b", "a\tb", '"', "x" * 200, "é"):
            made = await server.public.get("/healthz", headers={"X-Request-ID": bad.encode()})
            assert made.headers["x-request-id"] != bad
            assert len(made.headers["x-request-id"]) == 16


async def test_many_texts_keep_their_order(start: Start) -> None:
    async with start(max_batch_rows=8) as server:
        texts = [("b" if number % 3 else "a") + f" {number}" for number in range(100)]
        rows = (await server.classify(texts)).json()["data"]
        assert [row["index"] for row in rows] == list(range(100))
        high = {row["index"] for row in rows if row["probs"][1] > 0.15}
        assert high == {number for number in range(100) if number % 3}
        assert max(server.backbone.batches) <= 8


async def test_pairs(start: Start) -> None:
    async with start() as server:
        await server.publish(prompt_bytes("nli", template="{text} {text_pair}"), "nli")
        await server.apps.service.sync.refresh("nli")
        answer = await server.classify([{"text": "one", "text_pair": "two three"}, "alone"], "nli")
        assert answer.json()["usage"]["prompt_tokens"] == 4
        refused = await server.classify([{"text": "one", "text_pair": "two"}])
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert (await server.classify([{"text": "one"}])).status_code == 200


async def test_long_texts_are_cut_and_marked(start: Start) -> None:
    async with start(task=False) as server:
        await server.publish(prompt_bytes(max_length=MaxLength(tokens=8)))
        await server.apps.service.sync.refresh("sentiment")
        rows = (await server.classify(["w " * 8, "w " * 9])).json()["data"]
        assert ["truncated" in row for row in rows] == [False, True]
        for asked, tokens in ((3, 3), (-1, 8), (100, 8), (None, 8)):
            answer = (await server.classify("w " * 9, truncate_prompt_tokens=asked)).json()
            assert answer["usage"]["prompt_tokens"] == tokens


async def test_multi_label_rows_name_what_passes_its_threshold(start: Start) -> None:
    async with start(task=False) as server:
        labels = ("a", "b", "c")
        await server.publish(
            prompt_bytes("tags", labels=labels, multi_label=True, thresholds=(0.9, 0.05, 0.5)), "tags"
        )
        await server.apps.service.sync.refresh("tags")
        row = (await server.classify("zzz", "tags")).json()["data"][0]
        assert row["labels"] == ["b"]
        assert row["label"] == "a"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": "x"}, 422, "invalid_request"),
        ({"task_id": "sentiment", "model": "other", "input": "x"}, 422, "invalid_request"),
        ({"task_id": "sentiment", "input": ""}, 422, "empty_input"),
        ({"task_id": "sentiment", "input": " \n\t "}, 422, "empty_input"),
        ({"task_id": "sentiment", "input": []}, 422, "empty_input"),
        ({"task_id": "sentiment", "input": ["ok", ""]}, 422, "empty_input"),
        ({"task_id": "sentiment", "input": [{"text": "ok", "text_pair": ""}]}, 422, "empty_input"),
        ({"task_id": "sentiment", "input": "x" * 1001}, 413, "text_too_long"),
        ({"task_id": "sentiment", "input": ["ok", "x" * 1001]}, 413, "text_too_long"),
        ({"task_id": "sentiment", "input": [{"text": "x", "text_pair": "x" * 1001}]}, 413, "text_too_long"),
        ({"task_id": "sentiment", "input": ["x"] * 11}, 413, "too_many_inputs"),
        ({"task_id": "nope", "input": "x"}, 404, "unknown_task"),
        ({"task_id": "../etc", "input": "x"}, 422, "invalid_task_id"),
        ({"task_id": "SENTIMENT", "input": "x"}, 422, "invalid_task_id"),
        ({"task_id": "sentiment", "input": "x", "version": "nope"}, 404, "unknown_alias"),
        ({"task_id": "sentiment", "input": "x", "version": "f" * 64}, 404, "unknown_version"),
        ({"task_id": "sentiment", "input": "x", "version": ""}, 422, "invalid_alias"),
        ({"task_id": "sentiment", "input": [1]}, 422, "not_offered"),
        ({"task_id": "sentiment", "input": "x", "use_activation": False}, 422, "not_offered"),
        ({"task_id": "sentiment", "input": "x", "truncate_prompt_tokens": 0}, 422, "invalid_request"),
        ({"task_id": "sentiment", "input": "x", "request_id": "a b"}, 422, "invalid_request"),
        ({"task_id": "sentiment", "input": "x", "messages": []}, 422, "invalid_request"),
    ],
)
async def test_bad_requests(start: Start, body: dict[str, Any], status: int, code: str) -> None:
    async with start(max_text_chars=1000, max_inputs=10) as server:
        answer = await server.public.post("/classify", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_forward_that_raises_fails_only_the_caller_who_caused_it(start: Start) -> None:
    async with start(backbone=FakeBackbone(delay=0.02)) as server:
        answers = await asyncio.gather(
            *(server.classify("explode" if n == 3 else f"x {n}") for n in range(20))
        )
        assert [n for n, answer in enumerate(answers) if answer.status_code != 200] == [3]
        assert answers[3].json()["code"] == "inference_failed"
        assert "secrets" not in answers[3].text
        assert (await server.classify()).status_code == 200
        assert server.counted("forward_failures_total") == 1


async def test_a_row_without_numbers_fails_alone(start: Start) -> None:
    async with start(backbone=FakeBackbone(delay=0.02)) as server:
        texts = ["first", "x", "not-a-number", "y"]
        answers = await asyncio.gather(*map(server.classify, texts))
        assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
        assert answers[2].json()["code"] == "numerical_error"
        together = await server.public.post("/classify", json={"task_id": "sentiment", "input": texts})
        assert together.status_code == 500
        assert together.json()["detail"].endswith("for input 2")  # the caller can leave it out


async def test_a_full_queue_says_when_to_come_back(start: Start) -> None:
    async with start(backbone=FakeBackbone(delay=0.3), max_queue_rows=8, max_inputs=8) as server:
        answers = await asyncio.gather(*(server.classify(["x"] * 4) for _ in range(6)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        refused = answers[statuses.index(429)]
        assert refused.json()["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert (await server.classify()).status_code == 200


async def test_a_late_answer_is_503(start: Start, eventually: Eventually, tmp_path: Path) -> None:
    async with start(request_timeout=0.3) as server:
        answer = await server.classify(f"until={tmp_path / 'go'}")
        (tmp_path / "go").touch()
        assert (answer.status_code, answer.json()["code"]) == (503, "request_timeout")

        async def works() -> bool:
            return (await server.classify()).status_code == 200

        await eventually(works)


async def test_nothing_stays_outstanding(start: Start, eventually: Eventually) -> None:
    async with start(backbone=FakeBackbone(delay=0.005), request_timeout=0.3) as server:
        texts = ["x", "explode", "not-a-number", "sleep=0.05", ["a", "b"]]
        await asyncio.gather(*(server.classify(texts[number % 5]) for number in range(100)))
        await eventually(lambda: server.counted("queue_rows") == 0)
        assert server.counted("queue_tokens") == 0
        assert server.counted("http_in_flight_requests") == 0
        assert all(slot.pins == 0 for slot in server.apps.service.cache._slots.values())


async def test_cold_prompts_are_loaded_once_for_all_their_callers(start: Start) -> None:
    async with start(prompt_cache_bytes=0) as server:
        names = [f"t{number}" for number in range(8)]
        for name in names:
            await server.publish(prompt_bytes(name, favours=1), name)
            await server.apps.service.sync.refresh(name)
        answers = await asyncio.gather(*(server.classify("x", name) for name in names * 6))
        assert {answer.status_code for answer in answers} == {200}


def test_a_call_draws_by_its_key_then_by_the_bodys_request_id() -> None:
    limits = ClassifyLimits(BodyLimits(1000, 1.0), 10, 100, 1.0)
    body = ClassifyBody(task_id="t", input="x", request_id="body", truncate_prompt_tokens=-1)
    call = to_call(body, "header", limits)
    assert (call.request_id, call.draw, call.max_tokens, call.pairs) == ("body", "body", None, None)
    call = to_call(body, "header", limits, request_key=b"key")
    assert (call.request_id, call.draw) == ("body", "key")
    call = to_call(ClassifyBody(task_id="t", input="x"), "header", limits)
    assert (call.request_id, call.draw) == ("header", "header")


@pytest.mark.parametrize("key", [b"", b"a b", b"x" * 129, "é".encode(), b"-first", b'"'])
async def test_a_request_key_that_is_none_is_refused(start: Start, key: bytes) -> None:
    async with start() as server:
        answer = await server.public.post(
            "/classify",
            json={"task_id": "sentiment", "input": "x"},
            headers={b"X-Request-Key": key},
        )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "X-Request-Key" in answer.json()["detail"]
    assert "a letter or digit first" in answer.json()["detail"]


async def test_a_published_version_can_be_demanded_by_its_revision(start: Start) -> None:
    async with start() as server:
        store = server.apps.service.store
        data = prompt_bytes(favours=1)
        await store.publish(data)
        targets = [Target(version_of(data))]
        moved = await store.set_alias("sentiment", "current", targets, expected_revision=None)
        wanted = f"{moved.revision.epoch}:{moved.revision.number}"
        answer = await server.classify(min_revision=wanted)
        assert (answer.status_code, answer.json()["version"]) == (200, version_of(data))
        epoch, number = answer.headers["X-Store-Revision"].split(":")
        assert epoch == moved.revision.epoch
        assert int(number) >= moved.revision.number
        body = {"task_id": "sentiment", "input": "x"}
        again = await server.public.post("/classify", json=body, headers={"X-Min-Revision": wanted})
        assert again.status_code == 200


async def test_a_revision_that_this_server_has_not_seen(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine._REACH_SECONDS", 0.05)
    async with start() as server:
        seen = (await server.classify()).headers["X-Store-Revision"]
        epoch, number = seen.split(":")
        for wanted in (f"{epoch}:{int(number) + 1}", "0ther:1"):
            answer = await server.classify(min_revision=wanted)
            assert (answer.status_code, answer.json()["code"]) == (503, "revision_not_reached")
            assert int(answer.headers["Retry-After"]) >= 1


async def test_a_demanded_version_that_was_refused_here_is_not_replaced_by_the_one_before(
    start: Start,
) -> None:
    async with start() as server:
        old = (await server.classify()).json()["version"]
        await server.publish(prompt_bytes(favours=1, golden=[Golden(text="x", label="negative")]))
        revision = await server.apps.service.store.revision()
        wanted = f"{revision.epoch}:{revision.number}"
        answer = await server.classify(min_revision=wanted)
        assert (answer.status_code, answer.json()["code"]) == (503, "prompt_unavailable")
        assert (await server.classify()).json()["version"] == old
        assert (await server.classify(min_revision=wanted, version=old)).status_code == 200


@pytest.mark.parametrize("bad", ["", "x", "e:", "e:x", ":1", "e:1:é"])
async def test_a_revision_in_another_form(start: Start, bad: str) -> None:
    async with start() as server:
        answer = await server.classify(min_revision=bad)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        body = {"task_id": "sentiment", "input": "x", "min_revision": "e:1"}
        answer = await server.public.post("/classify", json=body, headers={"X-Min-Revision": "e:2"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
