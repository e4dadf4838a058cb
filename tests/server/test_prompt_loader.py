from prompt_store import Golden, version_of
from tests.server.conftest import Start
from tests.server.fakes import prompt_bytes


async def test_a_version_is_rehearsed_at_its_first_load_only(start: Start) -> None:
    """An evicted prompt that comes back costs no second rehearsal."""
    async with start(task=False, prompt_cache_bytes=0) as server:
        for name in ("a", "b"):
            await server.publish(prompt_bytes(name, golden=[Golden(text="x", label="negative")] * 3), name)
            await server.apps.service.sync.refresh(name)
        forwards = len(server.backbone.batches)
        assert forwards == 2
        assert server.backbone.batches == [3, 3]
        for _ in range(3):
            for name in ("a", "b"):
                assert (await server.classify("x", name)).status_code == 200
        assert server.backbone.batches[2:] == [1] * 6
        assert server.counted("prompt_cache_evictions_total") >= 4


async def test_what_fails_its_rehearsal_at_the_first_request_is_unavailable(start: Start) -> None:
    async with start() as server:
        bad = prompt_bytes(golden=[Golden(text="x", label="positive")])
        await server.apps.service.store.publish(bad)
        await server.apps.service.sync.refresh("sentiment")
        answer = await server.classify(version=version_of(bad))
        assert (answer.status_code, answer.json()["code"]) == (503, "prompt_unavailable")
        assert "golden_mismatch" in answer.json()["detail"]
        assert (await server.classify()).status_code == 200


async def test_a_trial_leaves_nothing_on_the_device(start: Start) -> None:
    async with start() as server:
        service = server.apps.service
        held = set(service.runner._prompts)
        await service.loader.try_out(prompt_bytes(), "sentiment")
        assert set(service.runner._prompts) == held
