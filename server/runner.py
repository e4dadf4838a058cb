"""The one thread that owns the device: it loads the backbone, holds the prompts' tensors, and runs every
forward.

Owns: everything that is a tensor. Must not know: callers, queues' bounds, tasks, HTTP. Only plain data
crosses its border (rows, slot numbers, scores), so that the device can move to a process of its own. Calls
run between batches: a prompt is complete in its slot before any batch can name it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

if TYPE_CHECKING:
    from backbone import Backbone, DevicePrompt, Row
    from prompt_store import Prompt
    from server.batcher import Batch, Scores

T = TypeVar("T")


class Work(Protocol):
    """Where batches come from and scores go."""

    def take(self) -> Batch[Row]:
        """Wait for the next batch; an empty one after a `wake`."""

    def finish(self, batch: Batch[Row], scores: Sequence[Scores] | None, seconds: float) -> None:
        """Take the scores of a batch, None when its forward raised."""

    def wake(self) -> None:
        """Let `take` return soon."""


class Runner:
    """Pulls batches from `work` and runs them. `start` returns when the backbone is there."""

    def __init__(self, work: Work, *, loop: asyncio.AbstractEventLoop) -> None:
        self._work, self._loop = work, loop
        self._calls: deque[tuple[Callable[[], object], asyncio.Future[object]]] = deque()
        self._prompts: dict[int, DevicePrompt] = {}
        self._backbone: Backbone | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._log = structlog.get_logger("promptmux.runner")

    async def start(self, load: Callable[[], Backbone]) -> Backbone:
        """Start the thread and load the backbone on it. Raises what `load` raises."""
        # A daemon: a forward that hangs must not keep the process alive past the drain timeout.
        self._thread = threading.Thread(target=self._work_until_stopped, name="promptmux-device", daemon=True)
        self._thread.start()
        self._backbone = backbone = await self._call(load)
        return backbone

    async def load(self, slot: int, prompt: Prompt, rows: Sequence[Row] = ()) -> tuple[int, list[Scores]]:
        """Check `prompt`, copy it to the device, put it in `slot`, and score `rows` under it.

        The bytes it takes there, and the scores. In one call, so that it waits for one running batch and not for two.
        """
        return await self._call(lambda: self._load(slot, prompt, rows))

    async def drop(self, slot: int) -> None:
        """Free the slot's memory."""
        await self._call(lambda: self._forget(slot))

    async def rehearse(self, rows: Sequence[Row], slot: int) -> list[Scores]:
        """Scores of `rows` under the prompt in `slot`, outside the queue."""
        return await self._call(lambda: self.run(rows, [slot] * len(rows)))

    async def stop(self, patience: float) -> bool:
        """End the thread after the batch that is running; False when it did not end in time."""
        thread = self._thread
        if thread is None:
            return True
        self._stopping = True
        self._work.wake()
        await asyncio.to_thread(thread.join, patience)
        return not thread.is_alive()

    def run(self, rows: Sequence[Row], slots: Sequence[int]) -> list[Scores]:
        """Scores of `rows[i]` under the prompt in `slots[i]`. On the device's thread only."""
        assert self._backbone is not None
        prompts = self._prompts
        return self._backbone.score(rows, [prompts[slot] for slot in slots])

    def _forget(self, slot: int) -> None:
        self._prompts.pop(slot, None)  # nothing is returned: the tensors are let go on this thread

    async def _call(self, function: Callable[[], T]) -> T:
        future: asyncio.Future[object] = self._loop.create_future()
        self._calls.append((function, future))
        self._work.wake()
        return await future  # type: ignore[return-value]  # one deque carries calls of every type

    def _work_until_stopped(self) -> None:
        while not self._stopping:
            while self._calls:
                self._answer(*self._calls.popleft())
            batch = self._work.take()
            if batch.rows:
                self._run_batch(batch)
            elif batch.dropped:
                self._work.finish(batch, [], 0.0)
        self._prompts.clear()

    def _run_batch(self, batch: Batch[Row]) -> None:
        scores: list[Scores] | None = None
        began = time.perf_counter()
        try:
            scores = self.run(batch.rows, batch.slots)
            if len(scores) != len(batch.rows):
                raise RuntimeError("the backbone gave another number of scores than rows")
        except Exception:  # whatever it is: every caller of the batch gets an answer
            scores = None
            self._log.exception("forward_failed", rows=len(batch.rows), tokens=batch.tokens)
        self._work.finish(batch, scores, time.perf_counter() - began)

    def _answer(self, function: Callable[[], object], future: asyncio.Future[object]) -> None:
        try:
            result = function()
        except Exception as error:
            self._loop.call_soon_threadsafe(_set_exception, future, error)
        else:
            self._loop.call_soon_threadsafe(_set_result, future, result)

    def _load(self, slot: int, prompt: Prompt, rows: Sequence[Row]) -> tuple[int, list[Scores]]:
        assert self._backbone is not None
        loaded = self._backbone.load_prompt(prompt)
        scores = self._backbone.score(rows, [loaded] * len(rows)) if rows else []
        self._prompts[slot] = loaded
        return loaded.nbytes, scores


def _set_result(future: asyncio.Future[object], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
