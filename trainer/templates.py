"""Owns where a method's virtual tokens stand in a template, and what a template is where none is given.

Knows the grammar and how many tokens words have; knows no method and no settings.
"""

from __future__ import annotations

from backbone import Backbone
from prompt_store import InvalidTemplate, PairSlot, SoftSlot, Template, TextSlot, parse_template
from trainer.errors import ConfigError


def written_template(source: str | None, *, pair: bool, mask: bool) -> Template:
    """The template `source`, or the bare texts, with a mask after them if one is read. Raises ConfigError."""
    bare = ("{text} {text_pair}" if pair else "{text}") + (" {mask}" if mask else "")
    try:
        template = parse_template(source or bare)
    except InvalidTemplate as error:
        raise ConfigError(f"prompt.template: {error}") from None
    if pair and not template.has_pair:
        raise ConfigError("prompt.template: the examples are pairs, but the template has no {text_pair}")
    return template


def in_front(template: Template, count: int) -> Template:
    """All virtual tokens before everything else (Lester et al. 2021, section 2)."""
    return Template((SoftSlot(count), *template.parts))


def around_texts(template: Template, count: int) -> Template:
    """Half of the virtual tokens before the first text, the others after the last: the words of a pattern."""
    places = [at for at, part in enumerate(template.parts) if isinstance(part, TextSlot | PairSlot)]
    first, last, after = min(places), max(places), count // 2
    return Template(
        (
            *template.parts[:first],
            SoftSlot(count - after),
            *template.parts[first : last + 1],
            *((SoftSlot(after),) if after else ()),
            *template.parts[last + 1 :],
        )
    )


def with_counts(template: Template, backbone: Backbone) -> Template:
    """The template with every `{soft:"words"}` turned into as many virtual tokens as its words have
    tokens.
    """
    words = [slot.init or "" for slot in template.soft_slots if slot.count is None]
    return template.resolve([max(1, len(backbone.tokenizer.encode_one(text))) for text in words])


def without_soft_slots(template: Template) -> Template:
    """The same template with nothing virtual in it: what the frozen features of head-only are computed on."""
    return Template(tuple(part for part in template.parts if not isinstance(part, SoftSlot)))
