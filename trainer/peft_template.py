"""Owns how a template is written for a tokenizer that gets whole texts, as a program with PEFT has it, and whether that
makes a row's tokens.

A row is tokenised in parts, since only the texts in it are cut. Knows nothing of adapters and their files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from backbone import Backbone
from backbone.pieces import pieces_of
from prompt_store import (
    InvalidTemplate,
    Literal,
    Manifest,
    MaskSlot,
    PairSlot,
    SoftSlot,
    StartSlot,
    Template,
    parse_template,
)
from trainer.errors import AdapterError

_BOTH = "{text}{text_pair}"
# Texts whose ends tokenizers may treat in their own ways beside a template's words, and one that has none of these.
ANY = "any text"
_SAMPLES = {
    ANY: "the film was good",
    "a full stop at the end": "the film was good.",
    "a quotation mark at the beginning": '"the film" was good',
    "a space at the beginning": " the film was good",
    "a space at the end": "the film was good ",
}


@dataclass(frozen=True)
class Around:
    """The tokens before and behind a row's one text, what is put before it as it is tokenised, and its most tokens."""

    before: list[int]
    lead: str
    most: int
    behind: list[int]


def around(template: Template, manifest: Manifest, backbone: Backbone, *, predicts: bool) -> Around | None:
    """What a row of one text is made of; None where the text touches a word whose tokens depend on it."""
    pieces = pieces_of(template, backbone.tokenizer, pair=False, is_causal=predicts or backbone.is_causal)
    at = next(at for at, piece in enumerate(pieces) if piece.slot)
    if pieces[at].join == "glued" and backbone.tokenizer.marks_words:
        return None
    before, behind = ([i for piece in part for i in piece.ids] for part in (pieces[:at], pieces[at + 1 :]))
    most = backbone.row_encoder(manifest).longest() - len(before) - len(behind)
    lead = backbone.tokenizer.lead("") if pieces[at].join == "spaced" else ""
    return Around([i for i in before if i >= 0], lead, most, behind)


def as_texts(template: Template, backbone: Backbone, *, predicts: bool) -> tuple[str, str | None]:
    """The one text or two that a tokenizer is given, with places as the template has them and doubled braces.

    `predicts`: a language model goes on behind the last one; the space there is its answer's.
    """
    sides: list[str] = [""]
    for part in template.parts:
        if isinstance(part, PairSlot):
            # Where no special token parts the two, the space between them is the second's.
            kept = sides[0].rstrip()
            border = "" if backbone.tokenizer.layout.pair_middle else sides[0][len(kept) :]
            sides = [kept, border + str(part)]
        elif not isinstance(part, SoftSlot | MaskSlot | StartSlot):
            sides[-1] += str(part)
    sides[0] = sides[0].lstrip()
    sides[-1] = sides[-1].removesuffix(" ") if predicts else sides[-1].rstrip()
    return sides[0], sides[1] if len(sides) > 1 else None


def has_words(template: Template) -> bool:
    """Whether anything stands in a row besides texts and what the tokenizer adds."""
    return any(isinstance(part, Literal) and part.text.strip() for part in template.parts)


def split_otherwise(text: str, manifest: Manifest, backbone: Backbone) -> list[str]:
    """What texts have that, put into `text` and tokenised whole, become other tokens than the manifest's row has."""
    tokenizer, layout = backbone.tokenizer, backbone.tokenizer.layout
    # The pieces, not a row: that would be cut where little room is left for a text.
    reads = manifest.decoder is not None and manifest.decoder.reads == "start"
    pieces = pieces_of(
        parse_template(manifest.template),
        tokenizer,
        pair=False,
        is_causal=backbone.is_causal or reads,
        continues=backbone.is_causal,
    )
    found = []
    for name, sample in _SAMPLES.items():
        (whole,) = tokenizer.encode([text.format(text=sample)])
        row: list[int] = []
        for piece in pieces:
            row += tokenizer.encode_joined([sample], piece.join)[0] if piece.slot else piece.ids
        if [*layout.prefix, *whole, *layout.suffix] != [i for i in row if i >= 0]:
            found.append(name)
    return found


def chosen_template(given: str | None, *, predicts: bool) -> str:
    """The template of an import: the caller's, or the text alone. `predicts`: a language model answers behind it.

    Raises:
        AdapterError: PEFT's rows cannot look like that.

    """
    source = given if given is not None else "{text} {mask}" if predicts else _BOTH
    try:
        parts = parse_template(source).parts
    except InvalidTemplate as error:
        raise AdapterError(f"--template: {error}") from None
    if any(isinstance(part, SoftSlot) for part in parts):
        raise AdapterError("--template: leave soft slots out: PEFT's virtual tokens come before everything")
    if any(isinstance(part, StartSlot) for part in parts):
        raise AdapterError(
            "--template: leave {start} out: special tokens stand where the tokenizer puts them"
        )
    if not predicts and any(isinstance(part, MaskSlot) for part in parts):
        raise AdapterError("--template: leave {mask} out: the adapter has a head, and no word is predicted")
    if predicts and not isinstance(parts[-1], MaskSlot):
        raise AdapterError(
            "--template: a language model answers after the text: end the template with {mask}"
        )
    return source


def check_template(source: str, manifest: Manifest, backbone: Backbone) -> list[str]:
    """Compare rows with what the tokenizer makes of the whole text, as PEFT's caller had it; returns notes.

    Raises:
        AdapterError: every text has other tokens here.

    """
    text, notes = "", []
    template = parse_template(source)
    if template.has_pair and source != _BOTH and backbone.tokenizer.layout.pair_middle:
        sides = as_texts(template, backbone, predicts=manifest.pooling == "mask")
        called = ", ".join(json.dumps(side, ensure_ascii=False) for side in sides)
        notes.append(
            f"a text and its pair are tokenised as two texts, as tokenizer({called}) does it, with special "
            "tokens between them: where PEFT's texts were parted elsewhere, or were one string, its logits are others "
            "than these"
        )
    for part in template.parts:
        if isinstance(part, PairSlot):  # one text alone: what parts it from a second is not there
            text = text.rstrip()
        elif not isinstance(part, MaskSlot):
            text += str(part)
    if manifest.pooling == "mask" and text.endswith(" "):
        full, text = text, text.removesuffix(" ")
        first, second = backbone.tokenizer.encode([each.format(text=_SAMPLES[ANY]) for each in (full, text)])
        if first != second:
            notes.append(
                "the space before {mask} belongs to the label words, and the row ends before it; where PEFT's text "
                "ended in a space, that was a token of its own, and its logits are others than these"
            )
    otherwise = split_otherwise(text, manifest, backbone)
    if ANY in otherwise:
        raise AdapterError(
            f"--template: {source!r} cannot be kept: as one text it becomes other tokens than in parts, so the logits "
            "would not be PEFT's. Leave out white space at its ends, and put spaces beside {text}"
        )
    if otherwise:
        notes.append(
            f"this tokenizer joins the ends of some texts ({'; '.join(otherwise)}) with the template's words beside "
            "them, which is not done here: the logits of such texts are others than PEFT's"
        )
    return notes
