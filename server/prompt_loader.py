"""From a tier to a slot, with every check on the way.

Owns: the order of the checks, for uploads and for what comes from the tiers. Must not know: slots'
bookkeeping, aliases, HTTP. Decoding and template work happen off the event loop; the device's part on one of
its lanes.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from prompt_store import InvalidPrompt, Manifest
from server.batch_queue import tokens_of
from server.errors import GoldenMismatch, NotFinite, PromptRefused
from server.prompt_cache import Loaded, Slot
from server.prompt_decoder import Checked, PromptDecoder
from server.prompt_tiers import PromptTiers
from server.runner import Runner

if TYPE_CHECKING:
    from backbone import Row, RowEncoder
    from server.batch_queue import Scores

_LOADS_AT_ONCE: Final = 16  # the device takes all that wait between two batches
_TRIALS_AT_ONCE: Final = 4  # uploads: what they take on the device is beside what the cache bounds
_REMEMBERED: Final = 100_000
# An upload's golden examples may be so many tokens, each member's own: about 30 of the usual batches. A few examples
# are a few hundred tokens; a thousand of the longest under sixteen members would keep a lane for most of an hour.
_MOST_TRIED: Final = 131_072
_CANARY_TEXT: Final = "The quick brown fox jumps over the lazy dog."


class PromptLoader:
    """Fetches, checks, rehearses and loads prompts."""

    def __init__(
        self, tiers: PromptTiers[Checked], decoder: PromptDecoder, runner: Runner, *, batch_tokens: int
    ) -> None:
        """`tiers` decode with `decoder`, too; `batch_tokens` is the most of one batch, as for requests."""
        self._tiers, self._decoder, self._runner = tiers, decoder, runner
        self._batch_tokens = batch_tokens
        self._gate = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._trial_gate = asyncio.Semaphore(_TRIALS_AT_ONCE)
        self._rehearsed: set[str] = set()  # versions that came out right
        self._trials = itertools.count(1)  # negative slots: the cache counts upwards from 0

    async def load(self, task_id: str, version: str, slot: int, *, rehearse: bool) -> Loaded:
        """Fetch a version from the nearest tier into a slot."""
        checked = await self._tiers.get(task_id, version)
        _check_task(checked, task_id)
        async with (
            self._gate
        ):  # after the fetch: a store that hangs must not keep what is here from the device
            rows = await asyncio.to_thread(_rehearsal_of, checked) if rehearse else []
            nbytes = await self._place(checked, slot, rows)
        if rehearse:
            self._remember(version)
        return Loaded(checked.prompt.manifest, checked.encoder, nbytes, checked.prompt.num_virtual_tokens)

    async def confirm(self, slot: Slot) -> None:
        """Rehearse the version in a slot, unless that was done. Raises GoldenMismatch or NotFinite."""
        if not self.has_rehearsed(slot.version):
            rows = await asyncio.to_thread(rehearsal, slot.manifest, slot.encoder)
            scores: list[Scores] = []
            for part in slices(rows, slot.members, slot.extra_tokens, self._batch_tokens):
                scores += await self._runner.rehearse(part, slot.index)
            judge(slot.manifest, scores)
            self._remember(slot.version)

    async def try_out(self, data: bytes, task_id: str) -> Manifest:
        """Everything that must hold before an upload is stored; leaves nothing on the device."""
        async with self._trial_gate:
            checked, _ = await asyncio.to_thread(self._decoder.decode, data)
            _check_task(checked, task_id)
            rows = await asyncio.to_thread(_rehearsal_of, checked)
            _refuse_long(checked, rows)
            slot = -next(self._trials)
            try:
                await self._place(checked, slot, rows)
            finally:
                self._runner.drop(slot)
        return checked.prompt.manifest

    async def _place(self, checked: Checked, slot: int, rows: Sequence[Row]) -> int:
        """Load the prompt and judge its scores of `rows`; what does not come out right is not left in the slot.

        The first rows are scored with the load, so that most files wait for one running batch only. The others go to
        the device a batch at a time, and requests get their turns between.
        """
        manifest = checked.prompt.manifest
        first, *others = slices(rows, _members(manifest), _extra_tokens(checked), self._batch_tokens) or [[]]
        nbytes, scores = await self._runner.load(slot, checked.prompt, first)
        try:
            for part in others:
                scores = [*scores, *await self._runner.rehearse(part, slot)]
            judge(manifest, scores)
        except BaseException:  # a caller that goes, too
            self._runner.drop(slot)
            raise
        return nbytes

    def has_rehearsed(self, version: str) -> bool:
        """Whether the version's golden examples came out right on this server."""
        return version in self._rehearsed

    def _remember(self, version: str) -> None:
        if len(self._rehearsed) >= _REMEMBERED:
            self._rehearsed.clear()
        self._rehearsed.add(version)


def _check_task(checked: Checked, task_id: str) -> None:
    own = checked.prompt.manifest.task_id
    if own != task_id:
        raise InvalidPrompt(f"the file is for task {own}, not for {task_id}")


def rehearsal(manifest: Manifest, encoder: RowEncoder) -> list[Row]:
    """Rows of the golden examples, or of one fixed text."""
    if not manifest.golden:
        return encoder.encode([_CANARY_TEXT])
    return encoder.encode([one.text for one in manifest.golden], [one.text_pair for one in manifest.golden])


def slices(rows: Sequence[Row], members: int, extra: int, batch_tokens: int) -> list[list[Row]]:
    """`rows` in order, cut so that each part is one batch for the device: a row is `members` rows there, each of its
    own tokens and `extra` ones. A row that is larger than a batch is a part of its own.
    """
    parts: list[list[Row]] = []
    room = 0
    for row in rows:
        cost = members * (tokens_of(row) + extra)
        if cost > room:
            parts.append([])
            room = batch_tokens
        parts[-1].append(row)
        room -= cost
    return parts


def _members(manifest: Manifest) -> int:
    return max(1, len(manifest.members))


def _extra_tokens(checked: Checked) -> int:
    """Virtual tokens of one member that are not among its row's: its prefix."""
    return (
        checked.prompt.num_virtual_tokens // _members(checked.prompt.manifest)
        - checked.encoder.virtual_tokens
    )


def _rehearsal_of(checked: Checked) -> list[Row]:
    return rehearsal(checked.prompt.manifest, checked.encoder)


def _refuse_long(checked: Checked, rows: Sequence[Row]) -> None:
    members = _members(checked.prompt.manifest)
    tokens = members * (sum(map(tokens_of, rows)) + _extra_tokens(checked) * len(rows))
    if tokens > _MOST_TRIED:
        each = f" for {members} members" if members > 1 else ""
        raise PromptRefused(
            f"the {len(rows)} golden examples are {tokens:,} tokens{each}, and a server tries at most "
            f"{_MOST_TRIED:,}: keep fewer or shorter ones"
        )


def judge(manifest: Manifest, scores: Sequence[Scores]) -> None:
    """Raise NotFinite or GoldenMismatch for scores of `rehearsal` that must not be."""
    if not all(math.isfinite(score) for row in scores for score in row):
        raise NotFinite("the prompt gives scores that are not numbers on this backbone and dtype")
    for number, (golden, row) in enumerate(zip(manifest.golden, scores, strict=False), 1):
        got = manifest.chosen_labels(row)
        if golden.label not in got:
            labels = ", ".join(map(repr, got)) or "none"
            raise GoldenMismatch(f"golden example {number}: expected {golden.label!r}, got {labels}")
