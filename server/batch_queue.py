"""Jobs go in, batches come out: where the event loop and the device's lanes meet. Knows no torch, HTTP or prompt.

A device has one lane or, on CPUs, one for each core: a thread that runs its batches from beginning to end, without
waiting for the others. A lane takes a batch the moment it is free: its even part of all that waits or runs, counting
the lanes that run a batch or wait for one (not those that load a prompt meanwhile). So rows that come together are
shared among cores, and batches do not grow unlike: where one lane had nearly all rows and the others went round with
one each, many rows would wait long, and few would share the cost of a forward.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from server.fair_order import FairOrder

Scores = tuple[float, ...]
# A turn is at most this part of a batch, in rows and in tokens.
_TURNS: Final = 4
# A flow may be ahead of the others by this part of the largest batch.
_ALLOWED: Final = 8


class Sized(Protocol):
    """What the queue knows of a row: how many tokens it has."""

    def __len__(self) -> int: ...


R = TypeVar("R", bound=Sized)


def tokens_of(row: Sized) -> int:
    """What a row costs the device: its own tokens, and those that an encoder-decoder's decoder reads for it."""
    return len(row) + len(getattr(row, "decoder", ()))


@dataclass(frozen=True, slots=True)
class Scored:
    """A job's answer: scores in the order of its rows; seconds until the first row was taken, and from then until the
    last one was done (a job of several turns waits between them, too).
    """

    scores: tuple[Scores, ...]
    queued: float
    forward: float


class Job(Generic[R]):
    """One caller's rows, which wait among those of their flow. Each is `times` rows on the device.

    `taken` and `first_taken` are the queue's; everything else is the event loop's.
    """

    __slots__ = (
        "extra", "first_taken", "flow", "future", "pending", "rows", "scores", "slot", "submitted", "taken", "times",
    )  # fmt: skip

    def __init__(
        self,
        rows: Sequence[R],
        slot: int,
        extra: int,
        future: asyncio.Future[Scored],
        flow: Hashable = None,
        times: int = 1,
    ) -> None:
        self.rows, self.slot, self.extra, self.future, self.flow = rows, slot, extra, future, flow
        self.times = times
        self.taken = 0
        self.first_taken = 0.0
        self.submitted = time.perf_counter()
        self.scores: list[Scores] = [()] * len(rows)
        self.pending = len(rows)

    def cost(self) -> int:
        """Tokens of the rows that no batch has yet."""
        left = self.rows[self.taken :]
        return self.times * (sum(map(tokens_of, left)) + self.extra * len(left))


@dataclass(slots=True)
class Batch(Generic[R]):
    """Rows of any callers for one forward: `rows[i]` under the prompt in slot `slots[i]`.

    They are `forwarded` rows on the device, where each member of an ensemble has one. `alone` says that all other lanes
    waited for work when the batch was made, and nothing was left for them. `raised` is the runner's to say: the forward
    of all these rows together raised.
    """

    rows: list[R] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    tokens: int = 0
    forwarded: int = 0
    dropped: int = 0
    alone: bool = False
    raised: bool = False
    parts: list[tuple[Job[R], int, int]] = field(default_factory=list)  # job, its first row here, how many


class BatchQueue(Generic[R]):
    """The jobs that wait. Every method may be called from any thread."""

    def __init__(self, batch_tokens: int, batch_rows: int) -> None:
        """The most of one batch; a row that is larger goes alone rather than never. `batch_tokens` may change."""
        self.batch_tokens, self._batch_rows = batch_tokens, batch_rows
        # Jobs take turns: a long one cannot hold up the others.
        self._turn: Final = max(1, batch_rows // _TURNS)
        self._change = threading.Condition(threading.Lock())
        self._jobs: FairOrder[Job[R]] = FairOrder(allowance=batch_tokens // _ALLOWED)
        self.waiting_tokens = 0
        self._busy = 0  # lanes that have taken a batch
        self.running_tokens = 0  # of these batches
        self.free = 0  # lanes that wait in `take`
        self._wakes = 0
        self.lanes = 1

    def put(self, jobs: Iterable[Job[R]]) -> None:
        """Let these jobs wait, each behind those of its flow."""
        with self._change:
            for job in jobs:
                self._jobs.put(job, job.flow)
                self.waiting_tokens += job.cost()
            self._change.notify(self.lanes)

    def wake(self, times: int = 1) -> None:
        """Make so many calls of `take` return soon, with nothing."""
        with self._change:
            self._wakes += times
            self._change.notify(times)

    def take(self) -> Batch[R]:
        """Wait until something is there, then this lane's share of it in one batch. Empty after a `wake`."""
        batch: Batch[R] = Batch()
        with self._change:
            while not self._jobs and not self._wakes:
                self.free += 1
                self._change.wait()
                self.free -= 1
            if self._wakes:
                self._wakes -= 1
                return batch
            share = (self.waiting_tokens + self.running_tokens) / (1 + self._busy + self.free)
            while self._jobs and batch.tokens < share:
                job = self._jobs.first()
                if job.future.done():  # the caller has gone
                    batch.dropped += len(job.rows) - job.taken
                    self.waiting_tokens -= job.cost()
                    self._jobs.drop()
                    continue
                taken, before = job.taken, batch.tokens
                full = self._fill(batch, job, share)
                if job.taken > taken:
                    self._jobs.served(batch.tokens - before, again=job.taken < len(job.rows))
                if full:
                    break
            batch.alone = self.free == self.lanes - 1 and not self._jobs
            if batch.rows:
                self._busy += 1
                self.running_tokens += batch.tokens
        return batch

    def done(self, batch: Batch[R]) -> None:
        """Hear that a lane has run this batch; each lane says so before it takes the next one."""
        if batch.rows:
            with self._change:
                self._busy -= 1
                self.running_tokens -= batch.tokens

    def _fill(self, batch: Batch[R], job: Job[R], share: float) -> bool:
        """Move one turn of the job's rows into the batch; True when the batch is full."""
        first = at = job.taken
        before, full = batch.tokens, False
        if first == 0:
            job.first_taken = time.perf_counter()
        end = min(first + max(1, self._turn // job.times), len(job.rows))
        while at < end and batch.tokens - before < self.batch_tokens // _TURNS + 1:
            row = job.rows[at]
            cost = job.times * (tokens_of(row) + job.extra)
            if batch.rows and (
                batch.tokens + cost > self.batch_tokens
                or batch.forwarded + job.times > self._batch_rows
                or batch.tokens >= share
            ):
                full = True
                break
            batch.rows.append(row)
            batch.slots.append(job.slot)
            batch.tokens += cost
            batch.forwarded += job.times
            at += 1
        job.taken = at
        if at > first:
            batch.parts.append((job, first, at - first))
            self.waiting_tokens -= batch.tokens - before
        return full
