"""The one queue between callers and the device: rows go in, batches come out. Knows no torch, no HTTP and no
prompt.

Two threads meet here. The event loop submits and delivers; the device's thread takes a batch the moment it is
free, so that no row waits for a turn of the loop and a batch holds everything that was waiting. All
bookkeeping (what is outstanding, the drain rate) belongs to the event loop; the device's thread touches the
inbox, the held job and a job's cursor only.
"""

from __future__ import annotations

import asyncio
import math
import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from server.errors import InferenceFailed, NumericalError, Overloaded, TooManyInputs
from server.metrics import Metrics

Scores = tuple[float, ...]


class Sized(Protocol):
    """What the batcher knows of a row: how many tokens it has."""

    def __len__(self) -> int: ...


R = TypeVar("R", bound=Sized)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one batch and of all that is outstanding (queued or on the device)."""

    batch_tokens: int
    batch_rows: int
    queue_rows: int
    queue_tokens: int


@dataclass(frozen=True, slots=True)
class Scored:
    """A job's answer: scores in the order of its rows, seconds in the queue and on the device."""

    scores: tuple[Scores, ...]
    queued: float
    forward: float


class _Job(Generic[R]):
    """One caller's rows. `taken` is the device thread's cursor; everything else is the event loop's."""

    __slots__ = (
        "extra",
        "first_taken",
        "forward",
        "future",
        "pending",
        "rows",
        "scores",
        "slot",
        "submitted",
        "taken",
    )

    def __init__(self, rows: Sequence[R], slot: int, extra: int, future: asyncio.Future[Scored]) -> None:
        self.rows, self.slot, self.extra, self.future = rows, slot, extra, future
        self.taken = 0
        self.first_taken = 0.0
        self.submitted = time.perf_counter()
        self.scores: list[Scores] = [()] * len(rows)
        self.pending = len(rows)
        self.forward = 0.0


@dataclass(slots=True)
class Batch(Generic[R]):
    """Rows of any callers for one forward: `rows[i]` under the prompt in slot `slots[i]`."""

    rows: list[R] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    tokens: int = 0
    dropped: int = 0
    _parts: list[tuple[_Job[R], int, int]] = field(default_factory=list)  # job, its first row here, how many


class Batcher(Generic[R]):
    """Bounded queue with a token budget per batch. Jobs take turns: a long one cannot hold up the others."""

    def __init__(self, limits: Limits, metrics: Metrics, *, loop: asyncio.AbstractEventLoop) -> None:
        self._limits, self._metrics, self._loop = limits, metrics, loop
        self._inbox: queue.SimpleQueue[_Job[R] | None] = queue.SimpleQueue()
        self._held: _Job[R] | None = None  # did not fit in the last batch
        self._turn: Final = max(1, limits.batch_rows // 4)
        self._rows = 0
        self._tokens = 0
        self._drain = _DrainRate()

    # -- the event loop's side ---------------------------------------------------------------------------

    @property
    def outstanding_rows(self) -> int:
        """Rows admitted and not answered yet."""
        return self._rows

    @property
    def outstanding_tokens(self) -> int:
        """Tokens submitted and not answered yet."""
        return self._tokens

    @contextmanager
    def admitted(self, rows: int) -> Iterator[None]:
        """Count `rows` as outstanding from here to the end of the block. Overloaded when there is no room."""
        if self._rows + rows > self._limits.queue_rows:
            self._refuse("rows")
        self._rows += rows
        try:
            yield
        finally:
            self._rows -= rows

    async def submit(self, rows: Sequence[R], slot: int, *, extra_tokens: int = 0) -> Scored:
        """Scores of `rows` under the prompt in `slot`; a row costs its length and `extra_tokens`.

        Raises what ended the job. A cancelled caller's rows leave the queue without reaching the device.
        """
        tokens = sum(map(len, rows)) + extra_tokens * len(rows)
        if tokens > self._limits.queue_tokens:
            raise TooManyInputs("these texts are more tokens than the server ever queues; send fewer at once")
        if self._tokens + tokens > self._limits.queue_tokens:
            self._refuse("tokens")
        job = _Job(rows, slot, extra_tokens, self._loop.create_future())
        self._tokens += tokens
        self._inbox.put(job)
        try:
            return await job.future
        finally:
            self._tokens -= tokens

    def retry_after(self) -> float:
        """Seconds until what is outstanding now will have drained, by the measured rate."""
        return self._drain.seconds_for(self._rows, self._tokens)

    def _refuse(self, reason: str) -> None:
        self._metrics.rejected.labels(reason).inc()
        raise Overloaded("the queue is full; try again later", retry_after=min(60.0, self.retry_after()))

    def _deliver(self, batch: Batch[R], scores: Sequence[Scores] | None, seconds: float) -> None:
        metrics = self._metrics
        metrics.dropped_rows.inc(batch.dropped)
        if not batch.rows:
            return
        self._drain.saw(len(batch.rows), batch.tokens, seconds)
        metrics.forward_time.observe(seconds)
        metrics.batch_rows.observe(len(batch.rows))
        metrics.batch_tokens.observe(batch.tokens)
        if scores is None:
            metrics.forward_failures.inc()
        else:
            metrics.rows.inc(len(batch.rows))
        at = 0
        for job, first, count in batch._parts:
            part = scores[at : at + count] if scores is not None else None
            at += count
            if not job.future.done():
                self._settle(job, first, part, seconds)

    def _settle(self, job: _Job[R], first: int, part: Sequence[Scores] | None, seconds: float) -> None:
        if part is None:
            job.future.set_exception(
                InferenceFailed("the forward of this batch failed; the log has the reason")
            )
            return
        job.scores[first : first + len(part)] = part
        job.pending -= len(part)
        job.forward += seconds
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
        job.future.set_result(Scored(tuple(job.scores), queued, job.forward))

    # -- the device thread's side ------------------------------------------------------------------------

    def take(self) -> Batch[R]:
        """Wait until something is there, then everything that fits in one batch. Empty after a `wake`."""
        batch: Batch[R] = Batch()
        job = self._held or self._inbox.get()
        self._held = None
        if job is None:
            return batch
        while True:
            if job is None:
                pass  # a wake is for an idle device
            elif job.future.done():  # the caller has gone
                batch.dropped += len(job.rows) - job.taken
            elif not self._fill(batch, job):
                self._held = job  # first in the next batch: it must not lose its place
                break
            elif job.taken < len(job.rows):
                self._inbox.put(job)  # its next turn
            try:
                job = self._inbox.get_nowait()
            except queue.Empty:
                break
        return batch

    def finish(self, batch: Batch[R], scores: Sequence[Scores] | None, seconds: float) -> None:
        """Hand the scores of a batch to its callers; None says that the forward raised."""
        self._loop.call_soon_threadsafe(self._deliver, batch, scores, seconds)

    def wake(self) -> None:
        """Make `take` return soon. Safe from any thread."""
        self._inbox.put(None)

    def _fill(self, batch: Batch[R], job: _Job[R]) -> bool:
        """Move one turn of the job's rows into the batch; False when the batch is full."""
        limits, first = self._limits, job.taken
        if first == 0:
            job.first_taken = time.perf_counter()
        end = min(first + self._turn, len(job.rows))
        at = first
        while at < end:
            row = job.rows[at]
            cost = len(row) + job.extra
            # A row that is larger than the budget goes alone rather than never.
            if batch.rows and (
                batch.tokens + cost > limits.batch_tokens or len(batch.rows) == limits.batch_rows
            ):
                break
            batch.rows.append(row)
            batch.slots.append(job.slot)
            batch.tokens += cost
            at += 1
        job.taken = at
        if at > first:
            batch._parts.append((job, first, at - first))
        return at == end


class _DrainRate:
    """How fast the device works, as moving averages over batches."""

    def __init__(self) -> None:
        self._rows = self._tokens = self._seconds = 0.0

    def saw(self, rows: int, tokens: int, seconds: float) -> None:
        keep = 0.9  # about the last ten batches
        self._rows = keep * self._rows + rows
        self._tokens = keep * self._tokens + tokens
        self._seconds = keep * self._seconds + seconds

    def seconds_for(self, rows: int, tokens: int) -> float:
        if self._seconds == 0.0:
            return 1.0  # nothing measured yet
        return max(rows / self._rows, tokens / self._tokens) * self._seconds
