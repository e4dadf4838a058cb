"""From a prompt's bytes to a slot, with every check on the way.

Owns: the order of the checks, for uploads and for what comes from the store. Must not know: slots'
bookkeeping, aliases, HTTP. Decoding and template work happen off the event loop; the device's part on its own
thread.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_store import (
    InvalidPrompt,
    Manifest,
    Prompt,
    PromptStore,
    check_backbone,
    check_finite_in,
    decode_prompt,
)
from server.errors import GoldenMismatch, NotFinite, NotReady
from server.labels import chosen_labels
from server.prompt_cache import Loaded
from server.runner import Runner

if TYPE_CHECKING:
    from backbone import Backbone, RowEncoder

_CANARY_TEXT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True, slots=True)
class Checked:
    """A prompt that passed every check that needs no forward."""

    prompt: Prompt
    encoder: RowEncoder


class PromptLoader:
    """Fetches, checks, rehearses and loads prompts."""

    def __init__(self, store: PromptStore, runner: Runner, *, max_bytes: int) -> None:
        self._store, self._runner, self._max_bytes = store, runner, max_bytes
        self._backbone: Backbone | None = None
        self._trials = itertools.count(1)  # negative slots: the cache counts upwards from 0

    def serve_with(self, backbone: Backbone) -> None:
        """The backbone is there: prompts can be checked against it."""
        self._backbone = backbone

    async def load(self, task_id: str, version: str, slot: int) -> Loaded:
        """Fetch a version from the store into a slot."""
        checked = await self.check(await self._store.get(task_id, version), task_id)
        nbytes = await self._runner.load(slot, checked.prompt)
        return Loaded(checked.prompt.manifest, checked.encoder, nbytes, checked.prompt.num_virtual_tokens)

    async def check(self, data: bytes, task_id: str) -> Checked:
        """Every check that needs no forward. Raises InvalidPrompt or one of its kinds."""
        return await asyncio.to_thread(self._check, data, task_id)

    async def rehearse(self, manifest: Manifest, encoder: RowEncoder, slot: int) -> None:
        """Run the golden examples, or one fixed text, in `slot`. Raises GoldenMismatch or NotFinite."""
        texts = [golden.text for golden in manifest.golden] or [_CANARY_TEXT]
        pairs = [golden.text_pair for golden in manifest.golden] or [None]
        scores = await self._runner.rehearse(encoder.encode(texts, pairs), slot)
        if not all(math.isfinite(score) for row in scores for score in row):
            raise NotFinite("the prompt gives scores that are not numbers on this backbone and dtype")
        for number, (golden, row) in enumerate(zip(manifest.golden, scores, strict=False), 1):
            got = chosen_labels(manifest, row)
            if golden.label not in got:
                labels = ", ".join(map(repr, got)) or "none"
                raise GoldenMismatch(f"golden example {number}: expected {golden.label!r}, got {labels}")

    async def try_out(self, data: bytes, task_id: str) -> Manifest:
        """Everything that must hold before an upload is stored; leaves nothing on the device."""
        checked = await self.check(data, task_id)
        manifest, slot = checked.prompt.manifest, -next(self._trials)
        await self._runner.load(slot, checked.prompt)
        try:
            await self.rehearse(manifest, checked.encoder, slot)
        finally:
            await self._runner.drop(slot)
        return manifest

    def _check(self, data: bytes, task_id: str) -> Checked:
        if self._backbone is None:
            raise NotReady("the model is still loading")
        prompt = decode_prompt(data, max_bytes=self._max_bytes)
        if prompt.manifest.task_id != task_id:
            raise InvalidPrompt(f"the file is for task {prompt.manifest.task_id}, not for {task_id}")
        check_backbone(prompt.manifest, self._backbone.shape)
        check_finite_in(prompt, self._backbone.dtype_name)
        return Checked(prompt, self._backbone.row_encoder(prompt.manifest))
