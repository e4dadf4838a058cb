import asyncio
import math
import random
import threading
from collections.abc import Sequence

import pytest

from server.batcher import Batch, Batcher, Limits, Scored
from server.errors import InferenceFailed, NumericalError, Overloaded, TooManyInputs
from server.metrics import Metrics

Row = str  # the batcher knows a row's length only
LIMITS = Limits(batch_tokens=20, batch_rows=4, batch_seconds=100, queue_rows=40, queue_tokens=100)


def new(metrics: Metrics, **changed: int) -> Batcher[Row]:
    fields = {name: changed.get(name, getattr(LIMITS, name)) for name in LIMITS.__slots__}
    return Batcher(Limits(**fields), metrics, loop=asyncio.get_running_loop())


def submit(batcher: Batcher[Row], rows: Sequence[Row], slot: int = 0, extra: int = 0) -> asyncio.Task[Scored]:
    return asyncio.create_task(batcher.submit(rows, slot, extra_tokens=extra))


def score(batch: Batch[Row]) -> list[tuple[float, ...]]:
    return [(len(row) + slot / 10,) for row, slot in zip(batch.rows, batch.slots, strict=True)]


async def settle() -> None:
    """Some turns of the loop: jobs are handed over in the one after they arrive, answers are delivered in the next."""
    for _ in range(3):
        await asyncio.sleep(0)


async def turn(batcher: Batcher[Row]) -> Batch[Row]:
    """One turn of the device, on this thread."""
    batch = batcher.take()
    batcher.finish(batch, score(batch), 0.01)
    await settle()
    return batch


async def test_a_batch_holds_all_that_was_waiting(metrics: Metrics) -> None:
    batcher = new(metrics)
    jobs = [submit(batcher, ["ab"], slot) for slot in range(3)]
    await settle()
    batch = await turn(batcher)
    assert batch.rows == ["ab"] * 3
    assert batch.slots == [0, 1, 2]
    assert [job.result().scores for job in jobs] == [((2.0,),), ((2.1,),), ((2.2,),)]


def test_a_lane_that_outlives_the_loop_ends_in_silence(metrics: Metrics) -> None:
    async def leave() -> tuple[Batcher[Row], Batch[Row]]:
        batcher = new(metrics)
        job = submit(batcher, ["ab"])
        await settle()
        batch = batcher.take()
        job.cancel()
        return batcher, batch

    batcher, batch = asyncio.run(leave())
    # What it raised, its thread would print at the end of the process.
    batcher.finish(batch, score(batch), 0.01)


async def test_a_row_that_runs_several_times_takes_so_much_room(metrics: Metrics) -> None:
    batcher = new(metrics)
    asking = asyncio.create_task(batcher.submit(["abc"], 0, extra_tokens=2, times=3))
    await settle()
    assert batcher.outstanding_tokens == 15
    await turn(batcher)
    assert asking.result().scores == ((3.0,),)
    assert batcher.outstanding_tokens == 0
    for name, value in (("batch_rows", 3), ("batch_tokens", 15)):
        assert metrics.registry.get_sample_value(f"promptmux_{name}_sum") == value
    with pytest.raises(TooManyInputs):
        await batcher.submit(["a" * 34], 0, times=3)


async def test_a_batch_counts_its_tasks_not_its_callers(metrics: Metrics) -> None:
    batcher = new(metrics)
    jobs = [submit(batcher, ["ab"], slot) for slot in (7, 8, 8)]
    await settle()
    assert len((await turn(batcher)).rows) == 3
    assert metrics.registry.get_sample_value("promptmux_batch_tasks_sum") == 2
    assert metrics.registry.get_sample_value("promptmux_batch_tasks_count") == 1
    await asyncio.gather(*jobs)


async def test_a_batch_ends_at_the_token_budget_and_the_next_begins_with_what_did_not_fit(
    metrics: Metrics,
) -> None:
    batcher = new(metrics)
    jobs = [submit(batcher, ["x" * length]) for length in (9, 9, 9, 2)]
    await settle()
    assert (await turn(batcher)).rows == ["x" * 9] * 2
    assert (await turn(batcher)).rows == ["x" * 9, "xx"]
    await asyncio.gather(*jobs)


async def test_the_prefix_of_a_row_counts_against_the_budget(metrics: Metrics) -> None:
    batcher = new(metrics)
    jobs = [submit(batcher, ["x"], extra=9) for _ in range(3)]
    await settle()
    assert (await turn(batcher)).tokens == 20
    await turn(batcher)
    await asyncio.gather(*jobs)


async def test_a_row_larger_than_the_budget_goes_alone(metrics: Metrics) -> None:
    batcher = new(metrics)
    jobs = [submit(batcher, [row]) for row in ("a", "x" * 50, "b")]
    await settle()
    assert [(await turn(batcher)).rows for _ in range(3)] == [["a"], ["x" * 50], ["b"]]
    await asyncio.gather(*jobs)


async def test_a_long_job_is_split_and_leaves_room_for_others(metrics: Metrics) -> None:
    batcher = new(metrics)
    long = submit(batcher, ["a"] * 10)
    await settle()
    short = submit(batcher, ["bb"])
    await settle()
    first = await turn(batcher)
    assert "bb" in first.rows
    assert short.done()
    assert not long.done()
    while not long.done():
        await turn(batcher)
    assert long.result().scores == ((1.0,),) * 10


async def test_scores_keep_the_order_of_rows_over_any_split(metrics: Metrics) -> None:
    random_ = random.Random(7)
    batcher = new(metrics, queue_rows=10_000, queue_tokens=100_000)
    wanted, jobs = [], []
    for slot in range(60):
        rows = ["x" * random_.randint(1, 30) for _ in range(random_.randint(1, 12))]
        wanted.append(tuple((len(row) + slot / 10,) for row in rows))
        jobs.append(submit(batcher, rows, slot))
        await settle()
        if random_.random() < 0.4:
            await turn(batcher)
    while not all(job.done() for job in jobs):
        batch = await turn(batcher)
        assert len(batch.rows) == 1 or (batch.tokens <= 20 and len(batch.rows) <= 4)
    assert [job.result().scores for job in jobs] == wanted
    assert (batcher.outstanding_rows, batcher.outstanding_tokens) == (0, 0)


async def test_rows_of_callers_that_have_gone_never_reach_the_device(metrics: Metrics) -> None:
    batcher = new(metrics)
    gone, stays = submit(batcher, ["gone"] * 3), submit(batcher, ["stays"])
    await settle()
    gone.cancel()
    await settle()
    batch = await turn(batcher)
    assert batch.rows == ["stays"]
    assert stays.done()
    assert batcher.outstanding_tokens == 0
    assert metrics.registry.get_sample_value("promptmux_dropped_rows_total") == 3


async def test_a_caller_that_leaves_during_the_forward_harms_nobody(metrics: Metrics) -> None:
    batcher = new(metrics)
    gone, stays = submit(batcher, ["gone"]), submit(batcher, ["stays"])
    await settle()
    batch = batcher.take()
    gone.cancel()
    await settle()
    batcher.finish(batch, score(batch), 0.01)
    assert (await stays).scores == ((5.0,),)


async def test_every_caller_of_a_failed_forward_gets_an_answer(metrics: Metrics) -> None:
    batcher = new(metrics)
    jobs = [submit(batcher, ["a", "b"]) for _ in range(4)]
    await settle()
    first = batcher.take()
    batcher.finish(first, None, 0.01)
    await settle()
    while not all(job.done() for job in jobs):
        await turn(batcher)
    results = await asyncio.gather(*jobs, return_exceptions=True)
    failed = [result for result in results if isinstance(result, InferenceFailed)]
    assert len(failed) >= 2
    assert len(failed) + sum(isinstance(result, Scored) for result in results) == 4
    assert batcher.outstanding_tokens == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
async def test_a_row_that_is_not_finite_fails_alone(metrics: Metrics, bad: float) -> None:
    batcher = new(metrics)
    broken, sound = submit(batcher, ["a"]), submit(batcher, ["b"])
    await settle()
    batch = batcher.take()
    batcher.finish(batch, [(0.5, bad), (0.5, 0.5)], 0.01)
    assert (await sound).scores == ((0.5, 0.5),)
    with pytest.raises(NumericalError):
        await broken


async def test_full_of_rows_means_overloaded_with_a_time_to_come_back(metrics: Metrics) -> None:
    batcher = new(metrics)
    with batcher.admitted(40), pytest.raises(Overloaded) as caught, batcher.admitted(1):
        pass
    assert int(caught.value.headers["Retry-After"]) >= 1
    with batcher.admitted(40):
        pass  # all given back


async def test_full_of_tokens_means_overloaded(metrics: Metrics) -> None:
    batcher = new(metrics)
    job = submit(batcher, ["x" * 60])
    await settle()
    with pytest.raises(Overloaded):
        await batcher.submit(["x" * 60], 0)
    await turn(batcher)
    await job
    assert batcher.outstanding_tokens == 0


async def test_retry_after_follows_the_measured_rate(metrics: Metrics) -> None:
    batcher = new(metrics, queue_rows=1000, queue_tokens=100_000)
    job = submit(batcher, ["x" * 10])
    await settle()
    batch = batcher.take()
    batcher.finish(batch, score(batch), 2.0)  # 5 tokens a second
    await job
    waiting = submit(batcher, ["x" * 100])
    await settle()
    assert batcher.retry_after() == pytest.approx(20.0)
    await turn(batcher)
    await waiting


async def test_a_batch_takes_about_as_long_as_it_may(metrics: Metrics) -> None:
    batcher = new(
        metrics, batch_rows=100, batch_tokens=48, batch_seconds=1, queue_rows=1000, queue_tokens=10_000
    )

    async def batch_of(rows: int, seconds: float) -> int:
        jobs = [submit(batcher, ["x"] * 2) for _ in range(rows)]
        await settle()
        batch = batcher.take()
        batcher.finish(batch, score(batch), seconds)
        await settle()
        while not all(job.done() for job in jobs):
            rest = batcher.take()
            batcher.finish(rest, score(rest), len(rest.rows) * seconds / len(batch.rows))
            await settle()
        return batch.tokens

    assert await batch_of(40, seconds=4.8) == 48  # nothing is known yet: the bound of tokens
    assert await batch_of(40, seconds=1.0) == 10  # ten tokens a second, so far
    assert await batch_of(40, seconds=0.001) == 10
    for _ in range(3):
        await batch_of(40, seconds=0.001)
    assert await batch_of(40, seconds=0.001) == 48  # fast again
    for _ in range(30):
        await batch_of(1, seconds=30.0)
    assert await batch_of(10, seconds=30.0) == 6  # an eighth at least, however slow


async def test_a_batch_that_raised_says_nothing_of_how_long_the_next_one_takes(metrics: Metrics) -> None:
    batcher = new(
        metrics, batch_rows=100, batch_tokens=40, batch_seconds=1, queue_rows=100, queue_tokens=1000
    )
    for raised in (False, True, True):
        jobs = [submit(batcher, ["x"]) for _ in range(40)]
        await settle()
        batch = batcher.take()
        batch.raised = raised
        batcher.finish(batch, score(batch), 5.0 if raised else 0.01)
        await settle()
        assert len(batch.rows) == 40
        await asyncio.gather(*jobs)


async def test_callers_who_give_up_cost_their_flow_nothing_and_do_not_pile_up(metrics: Metrics) -> None:
    batcher = new(metrics, batch_rows=8, batch_tokens=80, queue_rows=4000, queue_tokens=100_000)

    def ask(flow: str) -> asyncio.Task[Scored]:
        return asyncio.create_task(batcher.submit(["xxxxxxxxxx"], 0, flow=flow))

    others = [ask(f"task {at % 10}") for at in range(30)]
    for _ in range(20):
        given_up = [ask("impatient") for _ in range(100)]
        await settle()
        for one in given_up:
            one.cancel()
        await settle()
    last = ask("impatient")
    others += [ask(f"task {at % 10}") for at in range(30)]
    await settle()
    taken = 0
    while not last.done():
        taken += len((await turn(batcher)).rows)
    assert taken <= 40  # as if the 2,000 before it had never come: one of eleven who wait
    while not all(one.done() for one in others):
        await turn(batcher)
    assert (batcher.outstanding_tokens, batcher._queue.waiting_tokens) == (0, 0)


async def test_a_long_request_does_not_hold_up_short_ones_of_other_tasks(metrics: Metrics) -> None:
    batcher = new(metrics, batch_rows=128, batch_tokens=400, queue_rows=400, queue_tokens=100_000)
    long = asyncio.create_task(batcher.submit(["x" * 50] * 128, 0, flow="long"))
    await settle()
    await turn(batcher)
    short = [asyncio.create_task(batcher.submit(["yy"], 0, flow=f"task {at}")) for at in range(3)]
    await settle()
    await turn(batcher)
    assert all(one.done() for one in short)
    while not long.done():
        await turn(batcher)


async def test_wake_ends_a_wait_without_a_batch(metrics: Metrics) -> None:
    batcher = new(metrics)
    taken: list[Batch[Row]] = []
    thread = threading.Thread(target=lambda: taken.append(batcher.take()))
    thread.start()
    batcher.wake()
    await asyncio.to_thread(thread.join, 20)
    assert taken[0].rows == []


async def test_a_wake_does_not_cut_a_batch_short(metrics: Metrics) -> None:
    batcher = new(metrics)
    first = submit(batcher, ["a"])
    await settle()
    batcher.wake()
    second = submit(batcher, ["b"])
    await settle()
    assert (await turn(batcher)).rows == []  # whoever woke it comes first
    assert (await turn(batcher)).rows == ["a", "b"]
    await asyncio.gather(first, second)


async def test_a_row_without_a_prompt_fails_alone(metrics: Metrics) -> None:
    batcher = new(metrics)
    lost, sound = submit(batcher, ["a"]), submit(batcher, ["b"])
    await settle()
    batch = batcher.take()
    batcher.finish(batch, [None, (0.5, 0.5)], 0.01)
    assert (await sound).scores == ((0.5, 0.5),)
    with pytest.raises(InferenceFailed):
        await lost


async def test_a_flood_of_one_flow_neither_delays_nor_refuses_the_others(metrics: Metrics) -> None:
    batcher = new(metrics, queue_rows=40, queue_tokens=100)

    async def ask(flow: str, row: str) -> Scored:
        with batcher.admitted(1, flow):
            return await batcher.submit([row], 0, flow=flow)

    flood = [asyncio.create_task(ask("flood", "xxxx")) for _ in range(40)]
    await settle()
    refused = [one for one in flood if one.done()]
    for one in refused:
        with pytest.raises(Overloaded, match="this task's share"):
            one.result()
    assert len(refused) == 40 - 18  # 18 rows of 4 tokens are 72 of 100: the last quarter is left for others
    assert metrics.registry.get_sample_value("promptmux_rejected_requests_total", {"reason": "task"}) == 22
    others = [asyncio.create_task(ask(f"task {at}", "yy")) for at in range(3)]
    await settle()
    batch = await turn(batcher)
    assert sorted(batch.rows) == ["xxxx", "yy", "yy", "yy"]
    assert all(one.done() for one in others)
    while not all(one.done() for one in flood):
        await turn(batcher)
    assert (batcher.outstanding_rows, batcher.outstanding_tokens) == (0, 0)
