"""The device: the threads that load the backbone, hold the prompts' tensors, and run every forward.

Owns: everything that is a tensor. Must not know: callers, queues' bounds, tasks, HTTP. Only plain data
crosses its border (rows, slot numbers, scores), so that the device can move to a process of its own.

A GPU has one lane, a CPU one for each core: a thread that takes batches and runs them by itself. Calls run between
batches, on whichever lane is free first. No lock guards the prompts: one is complete in its slot before any batch can
name it, and is dropped when no batch can name it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import structlog

if TYPE_CHECKING:
    from backbone import Backbone, DevicePrompt, Row
    from prompt_store import Prompt
    from server.batch_queue import Batch, Scores

T = TypeVar("T")
# Seconds that a lane looks for the guilty rows of a forward that raised: a device that is gone fails all of them.
_APART_SECONDS: Final = 5.0

_SWEEP_AFTER: Final = 0.05  # seconds


class Work(Protocol):
    """Where batches come from and scores go."""

    def take(self) -> Batch[Row]:
        """Wait for the next batch; an empty one after a `wake`."""

    def finish(self, batch: Batch[Row], scores: Sequence[Scores | None] | None, seconds: float) -> None:
        """Take the scores of a batch.

        A row's is None where its slot is empty or its forward raised, and empty where it was given up untried.
        """

    def wake(self, times: int = 1) -> None:
        """Let so many calls of `take` return soon."""

    def serve(self, lanes: int) -> None:
        """Hear how many threads take batches."""


class Runner:
    """Pulls batches from `work` and runs them. `start` returns when the backbone is there."""

    def __init__(self, work: Work, *, loop: asyncio.AbstractEventLoop) -> None:
        self._work, self._loop = work, loop
        self._calls: deque[tuple[Callable[[], object], asyncio.Future[object]]] = deque()
        self._dropped: deque[int] = deque()
        self._prompts: dict[int, DevicePrompt] = {}
        self._backbone: Backbone | None = None
        self._stopping = False
        self._lanes: list[threading.Thread] = []
        self._log = structlog.get_logger("promptmux.runner")

    async def start(self, load: Callable[[], Backbone]) -> Backbone:
        """Start a lane, load the backbone on it, then start the other lanes. Raises what `load` raises."""
        self._start_lane()
        self._backbone = backbone = await self._call(load)
        while len(self._lanes) < backbone.lanes:
            self._start_lane()
        self._work.serve(len(self._lanes))
        return backbone

    async def load(self, slot: int, prompt: Prompt, rows: Sequence[Row] = ()) -> tuple[int, list[Scores]]:
        """Check `prompt`, copy it to the device, put it in `slot`, and score `rows` under it.

        The bytes it takes there, and the scores. In one call, so that it waits for one running batch and not for two.
        """
        gone = threading.Event()
        try:
            return await self._call(lambda: self._load(slot, prompt, rows, gone))
        except asyncio.CancelledError:
            gone.set()  # before the drop: a lane that is at it comes too late for that
            self.drop(slot)
            raise

    def drop(self, slot: int) -> None:
        """Free the slot's memory soon: when a lane is up anyway, or after a moment."""
        if not self._dropped:
            # One wake for all that are dropped together: each costs a lane as much as a small prompt's load.
            self._loop.call_later(_SWEEP_AFTER, self._sweep)
        self._dropped.append(slot)

    def _sweep(self) -> None:
        if self._dropped:
            self._work.wake()

    async def rehearse(self, rows: Sequence[Row], slot: int) -> list[Scores]:
        """Scores of `rows` under the prompt in `slot`, outside the queue."""
        scores = await self._call(lambda: self.run(rows, [slot] * len(rows)))
        found = [own for own in scores if own is not None]
        if len(found) < len(rows):
            raise RuntimeError(f"slot {slot} is empty")
        return found

    async def stop(self, patience: float) -> bool:
        """End the lanes after the batches that are running; False when they did not end in time."""
        self._stopping = True
        self._work.wake(len(self._lanes))
        deadline = time.monotonic() + patience
        for lane in self._lanes:
            await asyncio.to_thread(lane.join, max(0.0, deadline - time.monotonic()))
        ended = not any(lane.is_alive() for lane in self._lanes)
        if ended:
            self._prompts.clear()
        return ended

    def run(self, rows: Sequence[Row], slots: Sequence[int], *, alone: bool = False) -> list[Scores | None]:
        """Scores of `rows[i]` under the prompt in `slots[i]`, None where there is none. On a lane only.

        `alone` says that no other lane works. A slot can be empty: where the callers have gone after their rows were
        taken, another lane may have dropped it since. Rows of other callers must not suffer from that.
        """
        assert self._backbone is not None
        prompts = [self._prompts.get(slot) for slot in slots]
        found = [(row, prompt) for row, prompt in zip(rows, prompts, strict=True) if prompt is not None]
        scores = self._backbone.score_on_lane(
            [row for row, _ in found], [own for _, own in found], alone=alone
        )
        if len(scores) != len(found):
            raise RuntimeError("the backbone gave another number of scores than rows")
        rest = iter(scores)
        return [None if prompt is None else next(rest) for prompt in prompts]

    async def _call(self, function: Callable[[], T]) -> T:
        future: asyncio.Future[object] = self._loop.create_future()
        self._calls.append((function, future))
        self._work.wake()
        return await future  # type: ignore[return-value]  # one deque carries calls of every type

    def _start_lane(self) -> None:
        # A daemon: a forward that hangs must not keep the process alive past the drain timeout.
        name = f"promptmux-lane-{len(self._lanes)}"
        self._lanes.append(threading.Thread(target=self._work_until_stopped, name=name, daemon=True))
        self._lanes[-1].start()

    def _work_until_stopped(self) -> None:
        while not self._stopping:
            self._answer_calls()
            batch = self._work.take()
            if batch.rows:
                self._run_batch(batch)
            elif batch.dropped:
                self._work.finish(batch, [], 0.0)

    def _answer_calls(self) -> None:
        while self._dropped:
            with contextlib.suppress(IndexError):  # another lane was faster
                self._prompts.pop(self._dropped.popleft(), None)
        while True:
            try:
                function, future = self._calls.popleft()
            except IndexError:  # none, or another lane was faster
                return
            self._answer(function, future)

    def _run_batch(self, batch: Batch[Row]) -> None:
        scores: list[Scores | None] | None = None
        began = time.perf_counter()
        try:
            scores = self.run(batch.rows, batch.slots, alone=batch.alone)
            if lost := scores.count(None):
                self._log.info("rows_without_prompt", rows=lost)
        except Exception:  # whatever it is: every caller of the batch gets an answer
            batch.raised = True
            self._log.exception("forward_failed", rows=len(batch.rows), tokens=batch.tokens)
            sizes = [count for _, _, count in batch.parts]
            scores = self._run_apart(batch.rows, batch.slots, sizes, time.monotonic() + _APART_SECONDS)
            failed, untried = scores.count(None), scores.count(())
            self._log.info("forward_repeated", rows=len(scores), failed=failed, untried=untried)
        finally:
            self._work.finish(batch, scores, time.perf_counter() - began)

    def _run_apart(
        self, rows: Sequence[Row], slots: Sequence[int], sizes: Sequence[int], deadline: float
    ) -> list[Scores | None]:
        """Scores of rows whose forward together raised: those of the callers who did not cause it.

        `sizes` says how many rows each caller has here. By halves, so that one guilty caller among many costs about
        two more forwards of the whole, not one for each caller. What the time was too short for is empty, not None:
        nobody knows whether it would have raised.
        """
        if len(sizes) == 1:
            return [None] * len(rows)
        half = len(sizes) // 2
        cut = sum(sizes[:half])
        found: list[Scores | None] = []
        for part, callers in ((slice(cut), sizes[:half]), (slice(cut, None), sizes[half:])):
            if time.monotonic() > deadline:
                found += [()] * len(rows[part])
                continue
            try:
                found += self.run(rows[part], slots[part])
            except Exception:  # logged when they were together
                found += self._run_apart(rows[part], slots[part], callers, deadline)
        return found

    def _answer(self, function: Callable[[], object], future: asyncio.Future[object]) -> None:
        if future.done():  # the caller has gone
            return
        settle: Callable[[asyncio.Future[object], Any], None] = _set_result
        outcome: object
        try:
            outcome = function()
        except Exception as error:
            settle, outcome = _set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits for it any more
            self._loop.call_soon_threadsafe(settle, future, outcome)

    def _load(
        self, slot: int, prompt: Prompt, rows: Sequence[Row], gone: threading.Event
    ) -> tuple[int, list[Scores]]:
        assert self._backbone is not None
        loaded = self._backbone.load_prompt(prompt)
        scores = self._backbone.score_on_lane(rows, [loaded] * len(rows)) if rows else []
        self._prompts[slot] = loaded
        if gone.is_set():  # after it is there: the drop may have come before
            self._prompts.pop(slot, None)
        return loaded.nbytes, scores


def _set_result(future: asyncio.Future[object], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
