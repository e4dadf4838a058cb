"""Owns how a template is written for a tokenizer that gets whole texts, as a program with PEFT has it, and whether that
makes a row's tokens.

A row is tokenised in parts, since only the texts in it are cut. Knows nothing of adapters and their files.
"""

from __future__ import annotations

from collections.abc import Sequence

from backbone import Backbone
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

# Ends of texts that tokenizers treat in their own ways beside what follows: a letter, and a full stop.
SAMPLES = ("the film was good", "the film was good.")


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


def split_otherwise(text: str, manifest: Manifest, backbone: Backbone) -> Sequence[str]:
    """Those of SAMPLES that, put into `text` and tokenised whole, become other tokens than the manifest's row has."""
    layout, encoder = backbone.tokenizer.layout, backbone.row_encoder(manifest)
    found = []
    for sample in SAMPLES:
        (whole,) = backbone.tokenizer.encode([text.format(text=sample)])
        (row,) = encoder.encode([sample])
        if [*layout.prefix, *whole, *layout.suffix] != [i for i in row.token_ids if i >= 0]:
            found.append(sample)
    return found


def chosen_template(given: str | None, *, predicts: bool) -> str:
    """The template of an import: the caller's, or the text alone. `predicts`: a language model answers behind it.

    Raises:
        AdapterError: PEFT's rows cannot look like that.

    """
    source = given or ("{text} {mask}" if predicts else "{text}{text_pair}")
    try:
        parts = parse_template(source).parts
    except InvalidTemplate as error:
        raise AdapterError(f"--template: {error}") from None
    if any(isinstance(part, SoftSlot) for part in parts):
        raise AdapterError("--template: leave soft slots out: PEFT's virtual tokens come before everything")
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
    text = ""
    for part in parse_template(source).parts:
        if isinstance(part, PairSlot):  # one text alone: what parts it from a second is not there
            text = text.rstrip()
        elif not isinstance(part, MaskSlot):
            text += str(part)
    notes = []
    if manifest.pooling == "mask" and text.endswith(" "):
        text = text.removesuffix(" ")
        if backbone.tokenizer.lead(""):
            notes.append(
                "the space before {mask} belongs to the label words, and the row ends before it; where PEFT's text "
                "ended in a space, that was a token of its own, and its logits are others than these"
            )
    otherwise = split_otherwise(text, manifest, backbone)
    if otherwise == [SAMPLES[-1]]:
        notes.append(
            "this tokenizer joins the end of some texts, such as a full stop, with the template's words behind it, "
            "which is not done here: the logits of such texts are others than PEFT's"
        )
    elif otherwise:
        raise AdapterError(
            f"--template: {source!r} cannot be kept: as one text it becomes other tokens than in parts, so the logits "
            "would not be PEFT's. Leave out white space at its ends, and put spaces beside {text}"
        )
    return notes
