"""One task floods a whole server: the others are answered before its backlog is, and none of them is refused."""

import asyncio

from tests.server.conftest import Eventually, Start
from tests.server.fakes import FakeBackbone, prompt_bytes


async def test_a_tasks_backlog_is_its_own(start: Start, eventually: Eventually) -> None:
    backbone = FakeBackbone(delay=0.02)
    async with start(
        backbone=backbone, max_batch_rows=4, max_batch_tokens=64, max_queue_rows=100, max_inputs=50
    ) as server:
        for task_id in ("greedy", "modest", "other"):
            await server.publish(prompt_bytes(task_id=task_id, favours=1), task_id=task_id)
            await server.apps.service.sync.refresh(task_id)
            assert (await server.classify(task_id=task_id)).status_code == 200  # loaded
        flood = [asyncio.create_task(server.classify("x", task_id="greedy")) for _ in range(120)]
        await eventually(lambda: any(one.done() for one in flood))
        answers = await asyncio.gather(
            *(server.classify("y", task_id=task_id) for task_id in ("modest", "other", "modest"))
        )
        waits = sum(not one.done() for one in flood)
        statuses = [one.status_code for one in await asyncio.gather(*flood)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert waits > 30  # of the 75 that were taken in: nobody waited for them
    assert statuses.count(200) >= 75
    assert statuses.count(429) == 120 - statuses.count(200) > 0
