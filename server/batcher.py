"""The one way from callers to the device and back: rows in, scores out. Knows no torch, no HTTP and no prompt.

Owns what is outstanding, and for how long that will take to drain. Who calls is of a flow (a task, for the server):
flows share the device and the room in the queue evenly, however much one of them asks. All of it belongs to the event
loop; the device's lanes take their batches from the `BatchQueue` inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from server.batch_queue import Batch, BatchQueue, Job, Scored, Scores, Sized, tokens_of
from server.errors import InferenceFailed, NumericalError, Overloaded, TooManyInputs, Unavailable
from server.metrics import Metrics
from server.room import Room

R = TypeVar("R", bound=Sized)
_LEAST: Final = 8  # a batch may always have this part of `batch_tokens`, however long it takes


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one batch and of all that is outstanding (queued or on the device).

    `batch_seconds` is about how long a batch may take, by what the last ones took. What comes while all lanes are busy
    waits for the batch that runs and for its own: on a device where a hundred rows take half a second, that is a
    second for a caller with one row, and rows in batches of thirty cost hardly more.
    """

    batch_tokens: int
    batch_rows: int
    batch_seconds: float
    queue_rows: int
    queue_tokens: int


class Batcher(Generic[R]):
    """A bounded queue with a token budget per batch, shared evenly by the flows that wait in it."""

    def __init__(self, limits: Limits, metrics: Metrics, *, loop: asyncio.AbstractEventLoop) -> None:
        self._limits, self._metrics, self._loop = limits, metrics, loop
        self._queue: BatchQueue[R] = BatchQueue(limits.batch_tokens, limits.batch_rows)
        self._arrived: list[Job[R]] = []  # in this turn of the loop
        self._rows, self._tokens = Room(limits.queue_rows), Room(limits.queue_tokens)
        self._drain = _DrainRate()

    # -- the event loop's side ---------------------------------------------------------------------------

    def serve(self, lanes: int) -> None:
        """Say how many threads take batches."""
        self._queue.lanes = lanes

    @property
    def outstanding_rows(self) -> int:
        """Rows admitted and not answered yet."""
        return self._rows.total

    @property
    def outstanding_tokens(self) -> int:
        """Tokens submitted and not answered yet."""
        return self._tokens.total

    @contextmanager
    def admitted(self, rows: int, flow: Hashable = None) -> Iterator[None]:
        """Count `rows` as outstanding from here to the end of the block. Overloaded when there is no room."""
        self._check(self._rows, "rows", rows, flow)
        self._rows.take(flow, rows)
        try:
            yield
        finally:
            self._rows.give(flow, rows)

    async def submit(
        self, rows: Sequence[R], slot: int, *, extra_tokens: int = 0, times: int = 1, flow: Hashable = None
    ) -> Scored:
        """Scores of `rows` under the prompt in `slot`; a row costs `times` its length and `extra_tokens`.

        Raises what ended the job. A cancelled caller's rows leave the queue without reaching the device.
        """
        tokens = times * (sum(map(tokens_of, rows)) + extra_tokens * len(rows))
        if tokens > self._limits.queue_tokens:
            raise TooManyInputs("these texts are more tokens than the server ever queues; send fewer at once")
        self._check(self._tokens, "tokens", tokens, flow)
        job = Job(rows, slot, extra_tokens, self._loop.create_future(), flow, times)
        self._tokens.take(flow, tokens)
        if not self._arrived:
            # What arrives in the same turn of the loop is dealt to the lanes at once, and wakes each of them once.
            self._loop.call_soon(self._hand_over)
        self._arrived.append(job)
        try:
            return await job.future
        finally:
            self._tokens.give(flow, tokens)

    def retry_after(self) -> float:
        """Seconds until what is outstanding now will have drained, by the measured rate."""
        return self._drain.seconds_for(self._rows.total, self._tokens.total)

    def _hand_over(self) -> None:
        self._queue.put(self._arrived)
        self._arrived = []

    def _check(self, room: Room, unit: str, amount: int, flow: Hashable) -> None:
        if (full := room.refuses(flow, amount)) == "":
            return
        self._metrics.rejected.labels(unit if full == "all" else "task").inc()
        why = "the queue is full" if full == "all" else "this task's share of the queue is full"
        raise Overloaded(f"{why}; try again later", retry_after=min(60.0, self.retry_after()))

    def _deliver(
        self, batch: Batch[R], scores: Sequence[Scores | None] | None, seconds: float, ended: float
    ) -> None:
        metrics = self._metrics
        metrics.dropped_rows.inc(batch.dropped)
        if not batch.rows:
            return
        if (
            scores is not None and not batch.raised
        ):  # what is run again in halves says nothing of the next batch
            self._drain.saw(len(batch.rows), batch.tokens, seconds / self._queue.lanes)
            within = self._drain.tokens_in(self._limits.batch_seconds) / self._queue.lanes
            # Where a forward takes long however little is in it, ever smaller batches would never be faster.
            least = max(1, self._limits.batch_tokens // _LEAST)
            self._queue.batch_tokens = max(least, round(min(within, self._limits.batch_tokens)))
        metrics.forward_time.observe(seconds)
        metrics.batch_rows.observe(batch.forwarded)
        metrics.batch_tokens.observe(batch.tokens)
        metrics.batch_tasks.observe(len({job.slot for job, _, _ in batch.parts}))
        if scores is None or batch.raised:
            metrics.forward_failures.inc()
        if scores is not None:
            metrics.rows.inc(sum(map(bool, scores)))
        at = 0
        for job, first, count in batch.parts:
            part = scores[at : at + count] if scores is not None else None
            at += count
            if not job.future.done():
                self._settle(job, first, part, ended)

    def _settle(self, job: Job[R], first: int, part: Sequence[Scores | None] | None, ended: float) -> None:
        if part is None or None in part:
            job.future.set_exception(
                InferenceFailed("the forward of these texts failed; the log has the reason")
            )
            return
        scored = [own for own in part if own]
        if len(scored) < len(part):  # no word about these texts, nor about their prompt
            job.future.set_exception(
                Unavailable("the forward of other texts failed, and there was no time to run these alone")
            )
            return
        job.scores[first : first + len(scored)] = scored
        job.pending -= len(scored)
        if job.pending:
            return
        # One sum is enough to see a NaN or an infinity anywhere in a row.
        broken = [at for at, row in enumerate(job.scores) if not math.isfinite(sum(row))]
        if broken:
            self._metrics.numerical_errors.inc(len(broken))
            which = ", ".join(map(str, broken[:8])) + (" and more" if len(broken) > 8 else "")
            job.future.set_exception(
                NumericalError(f"this task's prompt gave scores that are not numbers, for input {which}")
            )
            return
        queued = job.first_taken - job.submitted
        self._metrics.queue_wait.observe(queued)
        # From the first row taken to the last one done: lanes may have had a job's rows at the same time.
        job.future.set_result(Scored(tuple(job.scores), queued, ended - job.first_taken))

    # -- the lanes' side ---------------------------------------------------------------------------------

    def take(self) -> Batch[R]:
        """Wait until something is there, then this lane's share of it in one batch. Empty after a `wake`."""
        return self._queue.take()

    def finish(self, batch: Batch[R], scores: Sequence[Scores | None] | None, seconds: float) -> None:
        """Hand the scores of a batch to its callers.

        None says that a row's forward raised, or had no prompt for it; empty ones, that the lane gave up before it.
        """
        self._queue.done(batch)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits for it any more
            self._loop.call_soon_threadsafe(self._deliver, batch, scores, seconds, time.perf_counter())

    def wake(self, times: int = 1) -> None:
        """Make so many calls of `take` return soon, with nothing. Safe from any thread."""
        self._queue.wake(times)


class _DrainRate:
    """How fast the device works, as moving averages over batches."""

    def __init__(self) -> None:
        self._rows = self._tokens = self._seconds = 0.0

    def saw(self, rows: int, tokens: int, seconds: float) -> None:
        keep = 0.9  # about the last ten batches
        self._rows = keep * self._rows + rows
        self._tokens = keep * self._tokens + tokens
        self._seconds = keep * self._seconds + seconds

    def tokens_in(self, seconds: float) -> float:
        return self._tokens / self._seconds * seconds if self._seconds else math.inf

    def seconds_for(self, rows: int, tokens: int) -> float:
        if self._seconds == 0.0:
            return 1.0  # nothing measured yet
        return max(rows / self._rows, tokens / self._tokens) * self._seconds
