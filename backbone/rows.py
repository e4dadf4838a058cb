"""From template and text to rows: what stands where in one input sequence.

Owns placement: special tokens, soft tokens, template words, truncation, segments, and which places are pooled. The
trainer and the server both come through here, so that a prompt is served exactly as it was trained. Plain data
only: knows no tensors and no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backbone.tokenizer import TextTokenizer
from prompt_store import (
    IncompatiblePrompt,
    Literal,
    Manifest,
    MaskSlot,
    PairSlot,
    SoftSlot,
    StartSlot,
    Template,
    TextSlot,
    parse_template,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One input sequence.

    `token_ids` holds vocabulary ids; virtual token k of the soft prompt stands as `~k` (−1, −2, …). `lead` counts the
    virtual tokens before the first real one, `second` is where the second segment begins, `spans` are the half-open
    stretches of places that pooling averages.
    """

    token_ids: tuple[int, ...]
    lead: int
    second: int
    spans: tuple[tuple[int, int], ...]
    num_prompt_tokens: int
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)


def text_row(token_ids: Sequence[int]) -> Row:
    """A row of these tokens and nothing else, averaged over all of them."""
    count = len(token_ids)
    return Row(tuple(token_ids), lead=0, second=count, spans=((0, count),), num_prompt_tokens=count)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a row: fixed ids, or a slot ("text", "pair") that a caller's text fills."""

    ids: tuple[int, ...] = ()
    slot: str = ""
    continues: bool = False  # a space stands before it
    is_mask: bool = False
    is_cls: bool = False
    opens_second: bool = False


class RowEncoder:
    """Turns texts into rows for one prompt. Template words are tokenised once; safe to use from several threads."""

    def __init__(
        self, manifest: Manifest, tokenizer: TextTokenizer, *, max_positions: int, is_causal: bool
    ) -> None:
        template = parse_template(manifest.template)
        self._tokenizer = tokenizer
        self._pooling = manifest.pooling
        self._counts, self._cut_left = manifest.max_length.counts, manifest.max_length.cut == "left"
        self._max_tokens = manifest.max_length.tokens
        self.virtual_tokens = template.num_soft
        self.takes_pair = template.has_pair
        self._single = _compile(template, tokenizer, pair=False, is_causal=is_causal)
        self._pair = (
            _compile(template, tokenizer, pair=True, is_causal=is_causal) if template.has_pair else ()
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
        if fixed >= self._limit or lead > max_positions:
            raise IncompatiblePrompt(
                f"template and soft prompt take {fixed} of the backbone's {self._limit} places: none is left"
            )
        if self._counts == "row" and fixed >= self._max_tokens:
            raise IncompatiblePrompt(
                f"max_length is {self._max_tokens} tokens, but template and soft prompt alone take {fixed}"
            )

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
        written = [self._written("text", layout, a) for layout, a in zip(layouts, texts, strict=True)]
        paired = [
            b for layout, b in zip(layouts, second, strict=True) if b is not None and layout is self._pair
        ]
        written += [self._written("pair", self._pair, b) for b in paired]
        ids = self._tokenizer.encode(written)
        rest = iter(ids[len(texts) :])
        return [
            self._row(layout, own, next(rest) if layout is self._pair else [], max_tokens)
            for layout, own in zip(layouts, ids, strict=False)
        ]

    def _written(self, slot: str, pieces: tuple[_Piece, ...], text: str) -> str:
        continues = next(piece.continues for piece in pieces if piece.slot == slot)
        return self._tokenizer.lead(text) if continues else text

    def _row(
        self, pieces: tuple[_Piece, ...], text: list[int], pair: list[int], max_tokens: int | None
    ) -> Row:
        fixed = sum(len(piece.ids) for piece in pieces)
        room = self._limit - fixed
        room = min(room, self._max_tokens - (fixed if self._counts == "row" else 0))
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
        elif (
            not spans and self._pooling == "mean"
        ):  # no text token to average: the row's own special tokens stand in
            spans = [(lead, len(ids))]
        elif not spans:  # "last", and "mask" on a causal model: the token that the next one follows
            spans = [(len(ids) - 1, len(ids))]
        return Row(tuple(ids), lead, second if second >= 0 else len(ids), tuple(spans), real, truncated)

    def _cut(self, ids: list[int], keep: int) -> list[int]:
        return ids[len(ids) - keep :] if self._cut_left else ids[:keep]


def _share(text: int, pair: int, room: int) -> tuple[int, int]:
    """How many tokens of text and pair are kept when the longer one is cut first."""
    if text + pair <= room:
        return text, pair
    half = room // 2
    if pair <= half:
        return room - pair, pair
    if text <= room - half:
        return text, room - text
    return room - half, half


def _leading_virtual(pieces: Sequence[_Piece]) -> int:
    count = 0
    for piece in pieces:
        if piece.slot or any(i >= 0 for i in piece.ids):
            break
        count += len(piece.ids)
    return count


def _compile(
    template: Template, tokenizer: TextTokenizer, *, pair: bool, is_causal: bool
) -> tuple[_Piece, ...]:
    """The template's parts as pieces, with special tokens placed by the tokenizer's rule.

    Leading soft slots come before the first special token unless the template has `{start}`. White space next to a
    soft slot or a segment border only separates; white space before a text or a template word belongs to it.
    """
    layout = tokenizer.layout
    prefix, suffix = (layout.pair_prefix, layout.pair_suffix) if pair else (layout.prefix, layout.suffix)
    parts = list(template.parts)
    if not pair:
        parts = [part for part in parts if not isinstance(part, PairSlot)]
    pieces: list[_Piece] = []
    opened = any(isinstance(part, StartSlot) for part in parts)
    joint, virtual = False, 0  # joint: a space at the start of the next piece means something
    for at, part in enumerate(parts):
        if isinstance(part, SoftSlot):
            if part.count is None:
                raise IncompatiblePrompt(f"the template's {part} is not resolved to a number of soft tokens")
            pieces.append(_Piece(tuple(~k for k in range(virtual, virtual + part.count))))
            virtual += part.count
            joint = False
            continue
        if isinstance(part, Literal) and not part.text.strip():
            continue  # looked at by the piece that follows it
        if not opened and not isinstance(part, StartSlot):
            pieces.extend(_special(prefix))
            opened = True
        spaced = joint and _spaced(parts, at)
        if isinstance(part, StartSlot):
            pieces.extend(_special(prefix))
            joint = False
        elif isinstance(part, TextSlot):
            pieces.append(_Piece(slot="text", continues=spaced))
            joint = True
        elif isinstance(part, PairSlot):
            if not any(piece.slot == "text" for piece in pieces):
                raise IncompatiblePrompt("{text_pair} must come after {text}: it is the second segment")
            pieces.extend(_Piece((i,), opens_second=False) for i in layout.pair_middle)
            pieces.append(_Piece(slot="pair", continues=spaced and not layout.pair_middle, opens_second=True))
            joint = True
        elif isinstance(part, MaskSlot):
            pieces.extend(_mask(tokenizer, is_causal=is_causal, is_last=_nothing_after(parts, at)))
            joint = True
        else:
            continues = joint and (spaced or part.text[:1].isspace())
            pieces.append(_Piece(tuple(tokenizer.encode_one(part.text.strip(), continues=continues))))
            joint = True
    pieces.extend(_Piece((i,)) for i in suffix)
    return tuple(pieces)


def _special(prefix: Sequence[int]) -> list[_Piece]:
    return [_Piece((token,), is_cls=at == 0) for at, token in enumerate(prefix)]


def _mask(tokenizer: TextTokenizer, *, is_causal: bool, is_last: bool) -> list[_Piece]:
    if tokenizer.mask_id is not None and not is_causal:
        return [_Piece((tokenizer.mask_id,), is_mask=True)]
    if not is_last:
        raise IncompatiblePrompt(
            "this backbone predicts the next token: {mask} must be the last part of the template"
        )
    return []


def _spaced(parts: Sequence[object], at: int) -> bool:
    before = parts[at - 1] if at else None
    return isinstance(before, Literal) and before.text[-1:].isspace()


def _nothing_after(parts: Sequence[object], at: int) -> bool:
    return all(isinstance(part, Literal) and not part.text.strip() for part in parts[at + 1 :])
