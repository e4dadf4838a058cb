"""Jobs dealt to lanes: evenly, nothing lost, nothing twice, whatever the lanes do when."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import hypothesis.strategies as st
import pytest
from hypothesis import given

from backbone import Row
from server.batch_queue import Batch, BatchQueue, Job, Scored


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One that does not run: nothing here waits for an answer."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


def job(
    loop: asyncio.AbstractEventLoop, rows: Sequence[str], *, slot: int = 0, extra: int = 0, times: int = 1
) -> Job[str]:
    future: asyncio.Future[Scored] = asyncio.Future(loop=loop)
    return Job(rows, slot, extra, future, times=times)


def with_lanes(lanes: int, *, tokens: int = 1000, rows: int = 100) -> BatchQueue[str]:
    queue: BatchQueue[str] = BatchQueue(tokens, rows)
    queue.lanes = lanes
    return queue


@contextmanager
def waiting(queue: BatchQueue[str], lanes: int) -> Iterator[list[Future[Batch[str]]]]:
    """So many lanes that wait for a batch each."""
    with ThreadPoolExecutor(lanes) as pool:
        takes = [pool.submit(queue.take) for _ in range(lanes)]
        end = time.monotonic() + 20
        while queue.free < lanes and time.monotonic() < end:
            time.sleep(0.001)
        try:
            yield takes
        finally:
            queue.wake(lanes)


def rows_of(takes: Sequence[Future[Batch[str]]]) -> list[int]:
    return sorted(len(take.result(20).rows) for take in takes)


def test_what_a_decoder_reads_is_counted(loop: asyncio.AbstractEventLoop) -> None:
    """A row of an encoder-decoder that reads its text twice is twice as long for the device."""
    copied = Row((1,) * 20, lead=0, second=20, spans=((19, 20),), num_prompt_tokens=20, decoder=(1,) * 20)
    queue: BatchQueue[Row] = BatchQueue(100, 100)
    future: asyncio.Future[Scored] = asyncio.Future(loop=loop)
    queue.put([Job([copied] * 5, 0, 0, future)])
    assert queue.waiting_tokens == 200
    taken = []
    while queue.waiting_tokens:
        taken.append(queue.take())
        queue.done(taken[-1])
    assert sum(len(batch.rows) for batch in taken) == 5
    assert all(batch.tokens == 40 * len(batch.rows) <= 100 for batch in taken)


def test_rows_that_come_together_are_shared_among_idle_lanes(loop: asyncio.AbstractEventLoop) -> None:
    queue = with_lanes(2)
    with waiting(queue, 2) as takes:
        queue.put([job(loop, ["xxxx"], slot=at) for at in range(8)])
        assert rows_of(takes) == [4, 4]


def test_rows_of_one_caller_are_shared_as_well(loop: asyncio.AbstractEventLoop) -> None:
    queue = with_lanes(3)
    with waiting(queue, 3) as takes:
        queue.put([job(loop, ["xxxx"] * 9)])
        assert rows_of(takes) == [3, 3, 3]


def test_a_lane_that_does_something_else_gets_no_part(loop: asyncio.AbstractEventLoop) -> None:
    queue = with_lanes(2)
    queue.put([job(loop, ["xxxx"]) for _ in range(8)])
    assert len(queue.take().rows) == 8


def test_a_lane_that_is_free_takes_its_even_part_of_what_waits_and_runs(
    loop: asyncio.AbstractEventLoop,
) -> None:
    queue = with_lanes(2)
    queue.put([job(loop, ["x"]) for _ in range(2)])
    first = queue.take()
    queue.put([job(loop, ["x"]) for _ in range(8)])
    # 8 wait and 2 run: 5 make it even, 3 are left for the lane that ends first.
    assert (len(first.rows), len(queue.take().rows)) == (2, 5)
    queue.done(first)
    assert len(queue.take().rows) == 3


def test_a_turn_is_a_part_of_a_batch_in_rows_and_in_tokens(loop: asyncio.AbstractEventLoop) -> None:
    by_rows = with_lanes(1, tokens=1000, rows=8)  # a turn is 2 rows
    by_rows.put([job(loop, ["x"] * 16, slot=1), job(loop, ["x"], slot=2)])
    assert by_rows.take().slots == [1, 1, 2, 1, 1, 1, 1, 1]
    by_tokens = with_lanes(1, tokens=40, rows=64)  # about 10 tokens
    by_tokens.put([job(loop, ["xxxxx"] * 16, slot=1), job(loop, ["x"], slot=2)])
    assert by_tokens.take().slots == [1, 1, 1, 2, 1, 1, 1, 1]


def test_a_lone_batch_knows_that_it_is_alone(loop: asyncio.AbstractEventLoop) -> None:
    queue = with_lanes(2)
    with waiting(queue, 2) as takes:
        queue.put([job(loop, ["x"])])
        while not any(take.done() for take in takes):
            time.sleep(0.001)
        (first,) = (take.result() for take in takes if take.done())
        queue.put([job(loop, ["x"])])
        (second,) = (take.result(20) for take in takes if take.result(20) is not first)
    assert (first.alone, second.alone) == (True, False)


def test_a_wake_reaches_one_lane_and_no_more() -> None:
    queue = with_lanes(2)
    with ThreadPoolExecutor(2) as pool:
        lanes = [pool.submit(queue.take) for _ in range(2)]
        queue.wake()
        ended, still = wait(lanes, timeout=20, return_when=FIRST_COMPLETED)
        assert len(ended) == 1
        assert len(wait(still, timeout=0.2).not_done) == 1
        queue.wake()
        assert [lane.result(20).rows for lane in lanes] == [[], []]


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=20),
    st.integers(1, 4),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_every_row_is_taken_once_within_the_bounds(
    loop: asyncio.AbstractEventLoop, jobs: list[list[int]], lanes: int, extra: int, chance: random.Random
) -> None:
    queue = with_lanes(lanes, tokens=40, rows=8)
    made = [job(loop, ["x" * n for n in lengths], slot=at, extra=extra) for at, lengths in enumerate(jobs)]
    gone = {at for at in range(len(made)) if chance.random() < 0.2}
    for at in gone:
        made[at].future.cancel()
    queue.put(made)
    running: list[Batch[str]] = []
    taken: Counter[tuple[int, int]] = Counter()
    dropped = 0
    wanted = sum(len(lengths) for lengths in jobs)
    for _ in range(10 * wanted):  # more than enough: a lost row must not hang the test
        if sum(taken.values()) + dropped == wanted:
            break
        while running and (len(running) == lanes or chance.random() < 0.5):
            queue.done(running.pop(chance.randrange(len(running))))
        batch = queue.take()
        dropped += batch.dropped
        if batch.rows:
            running.append(batch)
            assert len(batch.rows) == 1 or (batch.tokens <= 40 and len(batch.rows) <= 8)
            assert batch.tokens == sum(map(len, batch.rows)) + extra * len(batch.rows)
        for one, first, count in batch.parts:
            taken.update((one.slot, row) for row in range(first, first + count))
    for batch in running:
        queue.done(batch)
    assert (queue.waiting_tokens, queue.running_tokens) == (0, 0)
    assert set(taken.values()) <= {1}
    assert {slot for slot, _ in taken} == set(range(len(jobs))) - gone
    assert dropped == sum(len(jobs[at]) for at in gone)


def test_a_row_of_an_ensemble_fills_a_batch_as_the_rows_of_its_members(
    loop: asyncio.AbstractEventLoop,
) -> None:
    queue = with_lanes(1, tokens=1000, rows=12)
    queue.put([job(loop, ["xxxx"] * 5, extra=1, times=3), *(job(loop, ["yy"], slot=1) for _ in range(2))])
    assert queue.waiting_tokens == 5 * 3 * 5 + 2 * 2
    first = queue.take()
    # A turn is one of its rows here. Four of them would make fourteen of twelve.
    assert first.rows == ["xxxx", "yy", "yy", "xxxx", "xxxx"]
    assert (first.forwarded, first.tokens) == (11, 3 * 15 + 2 * 2)
    assert queue.waiting_tokens == 2 * 15
    queue.done(first)
    rest = queue.take()
    assert (len(rest.rows), rest.forwarded, rest.tokens) == (2, 6, 30)
    assert queue.waiting_tokens == 0


def test_tokens_of_all_members_count_and_a_row_that_is_too_large_goes_alone(
    loop: asyncio.AbstractEventLoop,
) -> None:
    queue = with_lanes(1, tokens=40, rows=4)
    queue.put([job(loop, ["xxxx"] * 2, times=8)])
    for _ in range(2):
        batch = queue.take()
        assert (len(batch.rows), batch.forwarded, batch.tokens) == (1, 8, 32)
        queue.done(batch)
