"""From template and text to rows: what stands where in one input sequence.

Owns truncation, segments, and which places are pooled; the template's own tokens come from `backbone.pieces`. The
trainer and the server both come through here, so that a prompt is served exactly as it was trained. Plain data
only: knows no tensors and no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backbone.decoder_input import DecoderRows, DecoderStart
from backbone.pieces import Piece, pieces_of
from backbone.tokenizer import Join, TextTokenizer
from prompt_store import IncompatiblePrompt, Manifest, parse_template


@dataclass(frozen=True, slots=True)
class Row:
    """One input sequence.

    `token_ids` holds vocabulary ids; virtual token k of the soft prompt stands as `~k` (−1, −2, …). `lead` counts the
    virtual tokens before the first real one, `second` is where the second segment begins, `spans` are the half-open
    stretches of places that pooling averages. `decoder` is what an encoder-decoder's decoder reads; `spans` are its.
    """

    token_ids: tuple[int, ...]
    lead: int
    second: int
    spans: tuple[tuple[int, int], ...]
    num_prompt_tokens: int
    truncated: bool = False
    decoder: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


def text_row(token_ids: Sequence[int]) -> Row:
    """A row of these tokens and nothing else, averaged over all of them."""
    count = len(token_ids)
    return Row(tuple(token_ids), lead=0, second=count, spans=((0, count),), num_prompt_tokens=count)


class RowEncoder:
    """Turns texts into rows for one prompt. Template words are tokenised once; safe to use from several threads."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: TextTokenizer,
        *,
        max_positions: int,
        is_causal: bool,
        decoder: DecoderStart | None = None,
    ) -> None:
        """`decoder` says how an encoder-decoder's decoder begins."""
        template, causal = parse_template(manifest.template), is_causal
        asked = manifest.decoder
        self._decoder = None
        if asked is not None and decoder is not None:
            self._decoder = DecoderRows(asked, decoder, mask_id=tokenizer.mask_id, places=max_positions)
            if asked.reads == "start":  # the label is the decoder's first token: no mask stands in the row
                is_causal = True
        self._tokenizer = tokenizer
        self._pooling = manifest.pooling
        self._counts, self._cut_left = manifest.max_length.counts, manifest.max_length.cut == "left"
        self._max_tokens = manifest.max_length.tokens
        self.virtual_tokens = template.num_soft
        self.takes_pair = template.has_pair
        self._single, pair = (
            pieces_of(template, tokenizer, pair=pair, is_causal=is_causal, continues=causal)
            for pair in (False, True)
        )
        self._pair = pair if template.has_pair else ()
        if causal and self._pooling in ("cls", "pooler") and _begins_with_cls(self._single):
            raise IncompatiblePrompt(
                f"pooling {self._pooling!r} reads the first token, which sees no text on a model that looks back only: "
                "use 'last' or 'mean'"
            )
        if self._pooling in ("cls", "pooler") and not any(piece.is_cls for piece in self._single):
            raise IncompatiblePrompt(
                f"pooling {self._pooling!r} reads the tokenizer's first special token, and this one has none: "
                "use 'last' or 'mean'"
            )
        fixed = max(sum(len(p.ids) for p in pieces) for pieces in (self._single, self._pair))
        # The model's own limit: virtual tokens at the front take places of their own, text starts at position_offset.
        lead = _leading_virtual(self._single)
        self._limit = max_positions - manifest.position_offset + lead
        if asked is not None and asked.reads == "copy" and asked.position_offset:  # it reads the row too
            self._limit = min(self._limit, max_positions - asked.position_offset)
        if fixed >= self._limit or lead > max_positions:
            raise IncompatiblePrompt(
                f"template and soft prompt take {fixed} of the backbone's {self._limit} places: none is left"
            )
        if self._counts == "row" and fixed >= self._max_tokens:
            raise IncompatiblePrompt(
                f"max_length is {self._max_tokens} tokens, but template and soft prompt alone take {fixed}"
            )

    def longest(self, *, pair: bool = False) -> int:
        """The most places that a row of one text has, or of a text and its pair: virtual tokens included."""
        fixed = sum(len(piece.ids) for piece in (self._pair if pair and self.takes_pair else self._single))
        return min(self._limit, self._max_tokens + (fixed if self._counts == "text" else 0))

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        *,
        max_tokens: int | None = None,
    ) -> list[Row]:
        """One row for each text (and its pair, where the template has a place for one).

        Texts that do not fit are cut as the manifest says. `max_tokens` cuts further: the most real tokens (special
        and template tokens included) a row may have.
        """
        second: list[str | None] = list(pairs) if pairs is not None else [None] * len(texts)
        layouts = [self._pair if self.takes_pair and b is not None else self._single for b in second]
        paired = [
            b for layout, b in zip(layouts, second, strict=True) if b is not None and layout is self._pair
        ]
        first = self._tokenizer.encode_joined(texts, _join("text", self._single))
        rest = iter(self._tokenizer.encode_joined(paired, _join("pair", self._pair)) if paired else ())
        return [
            self._row(layout, own, next(rest) if layout is self._pair else [], max_tokens)
            for layout, own in zip(layouts, first, strict=True)
        ]

    def _row(
        self, pieces: tuple[Piece, ...], text: list[int], pair: list[int], max_tokens: int | None
    ) -> Row:
        fixed = sum(len(piece.ids) for piece in pieces)
        room = self.longest(pair=pieces is self._pair) - fixed
        if max_tokens is not None:
            room = min(room, max_tokens - (fixed - self.virtual_tokens))
        kept_text, kept_pair = _share(len(text), len(pair), max(room, 0))
        truncated = kept_text + kept_pair < len(text) + len(pair)
        fill = {"text": self._cut(text, kept_text), "pair": self._cut(pair, kept_pair)}

        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        second = -1
        for piece in pieces:
            if piece.opens_second:
                second = len(ids)
            if piece.slot:
                content = fill[piece.slot]
                if content and self._pooling == "mean":
                    spans.append((len(ids), len(ids) + len(content)))
                ids.extend(content)
            else:
                if (piece.is_mask and self._pooling == "mask") or (
                    piece.is_cls and self._pooling in ("cls", "pooler")
                ):
                    spans.append((len(ids), len(ids) + 1))
                ids.extend(piece.ids)
        real = sum(1 for i in ids if i >= 0)
        if (
            not real
        ):  # a text without any token, on a backbone without special tokens: something must be there
            ids.append(self._tokenizer.filler_id)
            real = 1
        lead = next(at for at, i in enumerate(ids) if i >= 0)
        if isinstance(self._pooling, int):  # a place of the row, from its end if negative
            place = self._pooling if self._pooling >= 0 else len(ids) + self._pooling
            place = min(max(place, 0), len(ids) - 1)
            spans = [(place, place + 1)]
        elif self._pooling == "row":  # every place, the virtual ones too
            spans = [(0, len(ids))]
        elif (
            not spans and self._pooling == "mean"
        ):  # no text token to average: the row's own special tokens stand in
            spans = [(lead, len(ids))]
        elif not spans:  # "last", and "mask" on a causal model: the token that the next one follows
            spans = [(len(ids) - 1, len(ids))]
        decoder, places = ((), tuple(spans)) if self._decoder is None else self._decoder(ids, tuple(spans))
        second = second if second >= 0 else len(ids)
        return Row(tuple(ids), lead, second, places, real, truncated, decoder)

    def _cut(self, ids: list[int], keep: int) -> list[int]:
        return ids[len(ids) - keep :] if self._cut_left else ids[:keep]


def _share(text: int, pair: int, room: int) -> tuple[int, int]:
    """How many tokens of text and pair are kept: as the tokenizers' `longest_first`, an odd one to the longer."""
    if text + pair <= room:
        return text, pair
    half = room // 2
    if pair <= half:
        return room - pair, pair
    if text <= half:
        return text, room - text
    return (half, room - half) if pair >= text else (room - half, half)


def _join(slot: str, pieces: Sequence[Piece]) -> Join:
    return next(piece.join for piece in pieces if piece.slot == slot)


def _begins_with_cls(pieces: Sequence[Piece]) -> bool:
    """Whether the first special token stands before every text."""
    first = next((piece for piece in pieces if piece.is_cls or piece.slot), None)
    return first is not None and first.is_cls


def _leading_virtual(pieces: Sequence[Piece]) -> int:
    count = 0
    for piece in pieces:
        if piece.slot or any(i >= 0 for i in piece.ids):
            break
        count += len(piece.ids)
    return count
