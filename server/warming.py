"""Prompts that are fetched before anybody asks for them.

Owns: which, in what order, and what becomes of them when the store is away. Must not know: the store, the device, HTTP.
Requests go first: they load what they need, and this can wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog

from prompt_store import StoreUnavailable
from server.catalogue import CURRENT, Catalogue
from server.prompt_cache import PromptCache
from server.prompt_decoder import Checked
from server.prompt_tiers import PromptTiers

_DEVICE_PROMPTS: Final = 1000  # nobody knows which of 100,000 will be asked for
_PAUSE: Final = 0.02  # seconds, so many times for each prompt, while there are requests
_PAUSES: Final = 10
_NO_ROOM_SECONDS: Final = 10.0  # until it is tried whether the disk takes more by now


class Warming:
    """Loads what is current. `busy()` says whether there are requests; `refused` hears what cannot be served."""

    def __init__(
        self,
        catalogue: Catalogue,
        cache: PromptCache,
        tiers: PromptTiers[Checked],
        busy: Callable[[], bool],
        refused: Callable[[str, str, Exception], None],
    ) -> None:
        self._catalogue, self._cache, self._tiers = catalogue, cache, tiers
        self._busy, self._refused = busy, refused
        self._room = _DEVICE_PROMPTS
        self._log: Any = structlog.get_logger("promptmux.warming")

    async def run(self) -> None:
        """Load one after the other, while there is room: the first request need not wait.

        What has no room on the device goes to the disk, while there is room, for the day that the store is away.
        """
        waiting = deque(task.task_id for task in self._catalogue)
        while waiting:
            task_id = waiting.popleft()
            task = self._catalogue.get(task_id)
            # All targets of a split: the store may be away when the draw falls on the small one.
            for target in task.aliases.get(CURRENT, ()) if task is not None else ():
                if target.version in self._cache:
                    continue
                await self._give_way()
                if self._tiers.disk is None and not self._fits_on_device:
                    return  # nor will there be room for any other
                try:
                    if not await self._fetch(task_id, target.version):
                        waiting.append(task_id)
                        await asyncio.sleep(_NO_ROOM_SECONDS)
                        break
                except StoreUnavailable as error:
                    waiting.append(task_id)
                    await asyncio.sleep(error.retry_after)  # no line for each of 100,000 tasks
                    break
                except Exception as error:
                    code = getattr(error, "code", "internal_error")
                    self._log.warning("prompt_not_warmed", task=task_id, code=code)
                    self._refused(task_id, target.version, error)

    async def _give_way(self) -> None:
        for _ in range(_PAUSES):
            if not self._busy():
                break
            await asyncio.sleep(_PAUSE)

    @property
    def _fits_on_device(self) -> bool:
        return bool(self._room) and self._cache.has_room

    async def _fetch(self, task_id: str, version: str) -> bool:
        """Have the version nearer; False where the disk is full, or fails just now."""
        if self._fits_on_device:
            async with self._cache.pinned(task_id, version):
                self._room -= 1
            return True
        # Nobody tells when there is room again, or when a disk that failed works: it is tried once after each pause.
        return self._tiers.wants_prefetch and await self._tiers.prefetch(task_id, version)
