"""What a scrape shows of a running server: errors by code, what serves here, live versions, the process."""

import math
import sys
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from prompt_store import Golden, Target, version_of
from server.version_series import MAX_VERSIONS
from tests.server.conftest import Running, Start
from tests.server.fakes import FakeBackbone, prompt_bytes

OLD, NEW = prompt_bytes(), prompt_bytes(favours=1)
LIVE = "promptmux_task_version_info"


async def scraped(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await server.admin.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str) -> list[dict[str, str]]:
    return [dict(labels) for known, labels in samples if known == name]


async def test_errors_are_counted_by_their_code(start: Start) -> None:
    async with start() as server:
        await server.classify(task_id="nope")  # of the direct endpoint
        await server.classify(["x"] * 1000)
        await server.classify("explode")
        await server.public.get("/nope")  # of the app
        await server.admin.get("/admin/tasks/other")
        await server.admin.put("/admin/tasks/sentiment/aliases/current", json={"version": "0" * 64})
        await server.admin.get("/admin/tasks?limit=0")
        assert (await server.classify()).status_code == 200
        found = {
            (labels["app"], labels["route"], labels["code"])
            for labels in labelled(await scraped(server), "promptmux_http_errors_total")
        }
        assert found == {
            ("public", "/classify", "unknown_task"),
            ("public", "/classify", "too_many_inputs"),
            ("public", "/classify", "inference_failed"),
            ("public", "_unknown", "unknown_route"),
            ("admin", "/admin/tasks/{task_id}", "unknown_task"),
            ("admin", "/admin/tasks/{task_id}/aliases/{alias}", "precondition_required"),
            ("admin", "/admin/tasks", "invalid_request"),
        }
        assert server.counted("http_errors_total", app="public", route="/classify", code="unknown_task") == 1


async def test_an_error_that_is_nobodys_is_counted_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as server:
        monkeypatch.setattr(server.apps.service.catalogue, "_tasks", None)  # a bug
        assert (await server.classify()).status_code == 500
        assert (await server.public.get("/v1/models")).status_code == 500
        for route in ("/classify", "/v1/models"):
            assert server.counted("http_errors_total", app="public", route=route, code="internal_error") == 1


async def test_what_serves_is_shown_with_the_process_around_it(start: Start) -> None:
    async with start() as server:
        samples = await scraped(server)
        (build,) = labelled(samples, "promptmux_build_info")
        assert build == {
            "version": server.apps.service.version, "backbone": "fake", "fingerprint": "f" * 12, "device": "cpu",
            "dtype": "float32",
        }  # fmt: skip
        assert labelled(samples, "promptmux_device_memory_bytes") == []  # a CPU
        if sys.platform == "linux":
            for name in ("resident_memory_bytes", "cpu_seconds_total", "start_time_seconds"):
                assert samples[f"process_{name}", frozenset()] > 0


async def test_a_gpu_shows_its_memory_as_it_is_now(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, held = FakeBackbone(), {"allocated": 1, "reserved": 2, "free": 4, "total": 7}
    backbone.device = "cuda:0"
    failed = False

    def device_memory(device: str) -> dict[str, int]:
        if failed:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        return held if device else {}

    monkeypatch.setattr("backbone.device_memory.device_memory", device_memory)
    async with start(backbone=backbone) as server:
        for kind in held:
            assert server.counted("device_memory_bytes", kind=kind) == held[kind]
        held["allocated"] = 5
        assert server.counted("device_memory_bytes", kind="allocated") == 5
        failed = True
        assert math.isnan(server.counted("device_memory_bytes", kind="free"))


async def test_what_alerts_watch_begins_with_zero(start: Start) -> None:
    async with start(task=False) as server:
        samples = await scraped(server)
        tiers = {
            name: {labels["tier"] for labels in labelled(samples, f"promptmux_tier_{name}_total")}
            for name in ("hits", "misses", "evictions", "corrupt", "errors")
        }
        every = {"device", "host", "disk", "store"}
        assert tiers == {
            "hits": every, "misses": every, "evictions": every - {"store"}, "corrupt": every - {"device"},
            "errors": {"disk"},
        }  # fmt: skip
        assert not any(name.startswith("promptmux_prompt_cache") for name, _ in samples)


async def test_live_versions_are_those_that_answer(start: Start) -> None:
    async with start(metrics_tasks=("sentiment",)) as server:
        await server.publish(prompt_bytes("unlisted"), "unlisted")
        sync, store = server.apps.service.sync, server.apps.service.store
        await sync.refresh("unlisted")
        assert labelled(await scraped(server), LIVE) == [
            {"task": "sentiment", "alias": "current", "version": version_of(OLD)[:12]}
        ]
        await store.publish(NEW)
        both = [Target(version_of(OLD), 9), Target(version_of(NEW), 1)]
        await store.set_alias("sentiment", "try", both, expected_revision=None)
        await sync.refresh("sentiment")
        live = {(one["alias"], one["version"]) for one in labelled(await scraped(server), LIVE)}
        old, new = version_of(OLD)[:12], version_of(NEW)[:12]
        assert live == {("current", old), ("try", old), ("try", new)}
        server.apps.service.catalogue.detour("sentiment", "try", (Target(version_of(OLD)),))  # quarantine
        live = {(one["alias"], one["version"]) for one in labelled(await scraped(server), LIVE)}
        assert live == {("current", old), ("try", old)}


async def test_live_versions_are_bounded(start: Start) -> None:
    async with start(metrics_tasks=("sentiment",)) as server:
        catalogue = server.apps.service.catalogue
        task = catalogue.get("sentiment")
        assert task is not None
        targets = task.aliases["current"]
        catalogue.put(replace(task, aliases={f"a{at}": targets for at in range(MAX_VERSIONS + 50)}))
        assert len(labelled(await scraped(server), LIVE)) == MAX_VERSIONS


async def test_a_task_that_is_not_followed_shows(start: Start) -> None:
    async with start() as server:
        assert server.counted("catalogue_troubled_tasks") == 0
        wrong = [Golden(text="x", label="negative")]
        await server.publish(prompt_bytes(favours=1, golden=wrong))
        await server.apps.service.sync.refresh("sentiment")
        assert server.counted("catalogue_troubled_tasks") == 1
        assert server.counted("refused_versions_total", code="golden_mismatch") == 1
        await server.publish(NEW)
        await server.apps.service.sync.refresh("sentiment")
        assert server.counted("catalogue_troubled_tasks") == 0
