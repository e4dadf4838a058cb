"""From a template to the pieces of a row: fixed tokens, and the places that texts fill.

Owns where special tokens stand, and how a template's words and white space become tokens beside texts that are not
known yet: as when the whole row is tokenised at once, as far as that does not depend on the text. Knows no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backbone.tokenizer import ANCHORS, Join, TextTokenizer
from prompt_store import (
    IncompatiblePrompt,
    Literal,
    MaskSlot,
    PairSlot,
    SoftSlot,
    StartSlot,
    Template,
    TextSlot,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a row: fixed ids, or a slot ("text", "pair") that a caller's text fills, joined as `join` says."""

    ids: tuple[int, ...] = ()
    slot: str = ""
    join: Join = "plain"
    is_mask: bool = False
    is_cls: bool = False
    opens_second: bool = False


def pieces_of(
    template: Template, tokenizer: TextTokenizer, *, pair: bool, is_causal: bool, continues: bool = False
) -> tuple[Piece, ...]:
    """The template's parts as pieces, with special tokens placed by the tokenizer's rule.

    Leading soft slots come before the first special token unless the template has `{start}`. White space next to a
    soft slot, a mask token, a segment border or the row's end only separates; beside a text it is kept, and a space
    before a text, a word or the token to predict belongs to that. `is_causal` says that the mask is the next token, and
    `continues` that this row is what it follows (not what an encoder-decoder's encoder reads): then nothing stands
    behind the template, whatever special tokens the rule puts there.

    Raises:
        IncompatiblePrompt: the template does not fit this backbone.

    """
    layout = tokenizer.layout
    prefix, suffix = (layout.pair_prefix, layout.pair_suffix) if pair else (layout.prefix, layout.suffix)
    parts = [part for part in template.parts if pair or not isinstance(part, PairSlot)]
    pieces: list[Piece] = []
    opened = any(isinstance(part, StartSlot) for part in parts)
    joint, virtual = False, 0  # joint: white space at the start of what comes next means something
    join: Join = "plain"
    for at, part in enumerate(parts):
        if isinstance(part, SoftSlot):
            if part.count is None:
                raise IncompatiblePrompt(f"the template's {part} is not resolved to a number of soft tokens")
            pieces.append(Piece(tuple(~k for k in range(virtual, virtual + part.count))))
            virtual += part.count
            joint, join = False, "plain"
            continue
        ids: Sequence[int] = ()
        if isinstance(part, Literal):
            ids, join = _words(
                tokenizer,
                part.text,
                after=joint,
                before=_follower(parts[at + 1 :], tokenizer, is_causal=is_causal),
            )
            if not ids:
                continue  # a space: it belongs to what follows it
        if not opened and not isinstance(part, StartSlot):
            pieces.extend(_special(prefix))
            opened = True
        if isinstance(part, StartSlot):
            pieces.extend(_special(prefix))
            joint, join = False, "plain"
            continue
        if isinstance(part, Literal):
            pieces.append(Piece(tuple(ids)))
        elif isinstance(part, TextSlot):
            pieces.append(Piece(slot="text", join=join))
        elif isinstance(part, PairSlot):
            if not any(piece.slot == "text" for piece in pieces):
                raise IncompatiblePrompt("{text_pair} must come after {text}: it is the second segment")
            pieces.extend(Piece((i,)) for i in layout.pair_middle)
            pieces.append(Piece(slot="pair", join=join, opens_second=True))
        else:
            pieces.extend(_mask(tokenizer, is_causal=is_causal, is_last=_nothing_after(parts, at)))
        joint = True
        if not isinstance(part, Literal):
            join = "plain"
    if not (continues and any(isinstance(part, MaskSlot) for part in parts)):
        pieces.extend(Piece((i,)) for i in suffix)
    return tuple(pieces)


def _special(prefix: Sequence[int]) -> list[Piece]:
    return [Piece((token,), is_cls=at == 0) for at, token in enumerate(prefix)]


def _mask(tokenizer: TextTokenizer, *, is_causal: bool, is_last: bool) -> list[Piece]:
    if tokenizer.mask_id is not None and not is_causal:
        return [Piece((tokenizer.mask_id,), is_mask=True)]
    if not is_last:
        raise IncompatiblePrompt(
            "this backbone predicts the next token: {mask} must be the last part of the template"
        )
    return []


def _nothing_after(parts: Sequence[object], at: int) -> bool:
    return all(isinstance(part, Literal) and not part.text.strip() for part in parts[at + 1 :])


def _follower(rest: Sequence[object], tokenizer: TextTokenizer, *, is_causal: bool) -> str:
    """What stands behind a literal: "text", "prediction" (of the next token), or "", before which white space goes."""
    after = rest[0] if rest else None
    if isinstance(after, TextSlot) or (isinstance(after, PairSlot) and not tokenizer.layout.pair_middle):
        return "text"
    predicts = isinstance(after, MaskSlot) and (is_causal or tokenizer.mask_id is None)
    return "prediction" if predicts else ""


def _words(tokenizer: TextTokenizer, text: str, *, after: bool, before: str) -> tuple[Sequence[int], Join]:
    """Tokens of a literal, and how the text behind it joins on.

    `after`: a text or words stand before it. `before`: see `_follower`.
    """
    if before == "":
        text = text.rstrip()
    elif before == "prediction":  # the space belongs to the predicted word
        text = text.removesuffix(" ")
    if not after:
        text = text.lstrip()
    core = text.strip(" ")
    leads, trails = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    most = 0 if before == "prediction" else 1  # of spaces at its end; what is left of them there are tokens
    plainly = leads <= 1 and trails <= most and " ".join(core.split()) == core
    touches = bool(core) and ((after and not leads) or (before == "text" and not trails))
    if not plainly or (touches and tokenizer.marks_words):
        exact = _beside(tokenizer, text, after=after, before=before == "text")
        if exact is not None:
            return exact
        core = text.strip()
    ids = tokenizer.encode_joined([core], "spaced" if after and leads else "plain")[0] if core else []
    return ids, "spaced" if trails and (after or core) else "plain"


def _beside(
    tokenizer: TextTokenizer, text: str, *, after: bool, before: bool
) -> tuple[Sequence[int], Join] | None:
    """Tokens of a literal between two words, and how the second joins on; None where it melts into both."""
    for anchor in ANCHORS:
        front = tokenizer.encode([anchor])[0] if after else []
        ids = tokenizer.encode([(anchor if after else "") + text + (anchor if before else "")])[0]
        if ids[: len(front)] != front:
            continue
        if not before:
            return ids[len(front) :], "plain"
        joins: tuple[Join, ...] = ("spaced", "plain", "glued")
        for join in joins:
            back = tokenizer.encode_joined([anchor], join)[0]
            if back and len(front) + len(back) <= len(ids) and ids[len(ids) - len(back) :] == back:
                return ids[len(front) : len(ids) - len(back)], join
    return None
