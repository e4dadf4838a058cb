"""What an encoder-decoder's decoder reads for a row, as the manifest's `decoder` says.

Owns the decoder's tokens and where in it a row is pooled. Plain data only: knows no tensors and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prompt_store import DecoderInput, IncompatiblePrompt

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class DecoderStart:
    """How a model's decoder begins: with the token `start`; `wraps`: with the last token of the row (mBART).

    mBART-25's rows end in their language's code (mBART-50's begin with it), and it has no start token of its own unless
    it was trained for one.
    `cloze` is what it reads to fill a mask, as it was pretrained.
    """

    start: int | None
    cloze: Literal["mask", "copy"]
    wraps: bool = False


class DecoderRows:
    """Makes the decoder's part of a row for one prompt."""

    def __init__(self, asked: DecoderInput, begin: DecoderStart, *, mask_id: int | None, places: int) -> None:
        """`mask_id` is the model's mask token (T5: <extra_id_0>), `places` how many positions its decoder has.

        Raises IncompatiblePrompt: it has no mask or no start, or the decoder's positions begin too late for its tokens.
        """
        if asked.reads == "mask" and mask_id is None:
            raise IncompatiblePrompt('this backbone has no mask token: use decoder.reads "start" or "copy"')
        if begin.start is None and not begin.wraps:
            raise IncompatiblePrompt(
                "this backbone's configuration has no decoder_start_token_id, so its decoder cannot begin: "
                "leave the manifest's decoder out, and the encoder alone is run"
            )
        least = 2 if asked.reads == "mask" else 1
        if asked.position_offset + least > places:
            raise IncompatiblePrompt(
                f"the decoder begins at position {asked.position_offset} and reads at least {least} tokens, and this "
                f"backbone has {places} positions: decoder.position_offset must be at most {places - least}"
            )
        self._reads, self._begin, self._mask_id = asked.reads, begin, mask_id

    def __call__(self, token_ids: Sequence[int], spans: Spans) -> tuple[tuple[int, ...], Spans]:
        """The decoder's tokens, and the stretches of its places that are pooled.

        `token_ids` is the encoder's row, in which virtual tokens are negative, and `spans` what would be pooled of it.
        """
        real = [i for i in token_ids if i >= 0]
        first = self._begin.start if self._begin.start is not None else real[-1]
        if self._reads == "start":
            return (first,), ((0, 1),)
        if self._reads == "mask":
            assert self._mask_id is not None, "the constructor refuses that"
            return (first, self._mask_id), ((1, 2),)
        # The place that a token has among the real ones is the decoder's place that predicts it.
        rank, at = [], 0
        for i in token_ids:
            rank.append(min(at, len(real) - 1))
            at += i >= 0
        last = real[-1] if self._begin.wraps else first
        return (last, *real[:-1]), tuple((rank[begin], rank[end - 1] + 1) for begin, end in spans)
