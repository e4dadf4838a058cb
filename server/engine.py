"""One classify call from names to scores: resolve, pin, tokenise, submit, await.

Owns: the order of these steps, what is let go at the end, and who hears how it went. Must not know: HTTP, the store,
tensors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prompt_store import PromptStoreError, Revision
from server.batch_queue import Scores
from server.batcher import Batcher
from server.catalogue import Catalogue
from server.errors import InvalidRequest, PromptUnavailable, RequestError, RevisionLost, RevisionNotReached
from server.guard import Guard
from server.metrics import Metrics
from server.prompt_cache import PromptCache, Slot
from server.traffic import UNANSWERED, Traffic
from server.view import View

if TYPE_CHECKING:
    from backbone import Row

# Characters that are tokenised in less time than a hop to another thread takes.
_INLINE_CHARS: Final = 4_000
_REACH_SECONDS: Final = 2.0  # how far behind a healthy server's catalogue may be


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller wants classified, checked and free of HTTP. `draw` decides between an alias's versions."""

    task_id: str
    texts: Sequence[str]
    pairs: Sequence[str | None] | None
    version: str | None
    max_tokens: int | None
    request_id: str
    draw: str
    min_revision: Revision | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores in the order of the texts, the prompt that gave them, and where the time went."""

    slot: Slot
    scores: Sequence[Scores]
    truncated: Sequence[bool]
    prompt_tokens: int
    virtual_tokens: int
    tokenize: float
    queued: float
    forward: float
    revision: str  # of the catalogue that named the version


class Engine:
    """Answers calls. Everything it uses is handed to it; `refused` hears of prompts that could not be loaded."""

    def __init__(
        self,
        catalogue: Catalogue,
        view: View,
        cache: PromptCache,
        batcher: Batcher[Row],
        traffic: Traffic,
        guard: Guard,
        metrics: Metrics,
        refused: Callable[[str, str, Exception], None],
    ) -> None:
        self._catalogue, self._view, self._cache, self._batcher = catalogue, view, cache, batcher
        self._traffic, self._guard, self._metrics = traffic, guard, metrics
        self._refused = refused
        self._device_hits = metrics.tier_hits.labels("device")
        self._device_misses = metrics.tier_misses.labels("device")

    async def classify(self, call: Call) -> Answer:
        """Scores for every text of the call, all under one version."""
        if call.min_revision is not None:
            # Who waits takes up room like who is served: a crowd that waits must not grow without bound.
            with self._batcher.admitted(len(call.texts), call.task_id):
                await self._reach(call, call.min_revision)
        revision = self._view.text
        version = self._catalogue.resolve(call.task_id, call.version, call.draw)
        counts = self._traffic.of(version)
        try:
            with self._batcher.admitted(len(call.texts), call.task_id):
                answer = await self._ask(call, version, revision)
        except BaseException as error:  # a cancelled call, too, is one that the version did not answer
            if counts is not None:
                gone = isinstance(error, asyncio.CancelledError)
                counts.failed(UNANSWERED if gone else getattr(error, "code", "internal_error"))
            self._guard.blame(call.task_id, version, error, lambda other: self._ask(call, other, revision))
            raise
        if counts is not None:
            counts.answered(answer.scores)
        return answer

    async def _ask(self, call: Call, version: str, revision: str) -> Answer:
        slot = self._cache.pin_loaded(version)
        if slot is not None:
            self._device_hits.inc()
        else:
            slot = await self._pin(call.task_id, version)
        try:
            return await self._score(call, slot, revision)
        finally:
            self._cache.unpin(slot)

    async def _reach(self, call: Call, wanted: Revision) -> None:
        if not await self._view.reached(wanted, _REACH_SECONDS):
            if self._view.is_lost(wanted):
                raise RevisionLost(
                    f"the store lost the history that min_revision is of; it is at {self._view.text} now",
                    param="min_revision",
                )
            raise RevisionNotReached(f"this server's catalogue is at {self._view.text}, before min_revision")
        # What was published by then, or nothing: not the version before it in its stead.
        if self._catalogue.lags(call.task_id, call.version, wanted.number):
            raise PromptUnavailable("the published version cannot be served here; the admin API says why")

    async def _pin(self, task_id: str, version: str) -> Slot:
        self._device_misses.inc()
        try:
            return await self._cache.pin(task_id, version)
        except (PromptStoreError, RequestError) as error:
            self._refused(task_id, version, error)
            # The prompt's fault, not the caller's: what was wrong with it is for the operator.
            raise PromptUnavailable(f"the task's prompt cannot be loaded here ({error.code})") from error

    async def _score(self, call: Call, slot: Slot, revision: str) -> Answer:
        if call.pairs is not None and not slot.takes_pair:
            raise InvalidRequest("this task takes no text_pair", param="input")
        began = time.perf_counter()
        if sum(map(len, call.texts)) + sum(map(len, filter(None, call.pairs or ()))) <= _INLINE_CHARS:
            rows = _encode(slot, call)
        else:
            rows = await asyncio.to_thread(_encode, slot, call)
        tokenize = time.perf_counter() - began
        self._metrics.tokenize_time.observe(tokenize)
        scored = await self._batcher.submit(
            rows, slot.index, extra_tokens=slot.extra_tokens, times=slot.members, flow=call.task_id
        )
        return Answer(
            slot,
            scored.scores,
            [row.truncated for row in rows],
            sum(row.num_prompt_tokens for row in rows),
            slot.num_virtual_tokens * len(rows),
            tokenize,
            scored.queued,
            scored.forward,
            revision,
        )


def _encode(slot: Slot, call: Call) -> list[Row]:
    return slot.encoder.encode(call.texts, call.pairs, max_tokens=call.max_tokens)
