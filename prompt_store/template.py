r"""The template grammar: how a task wraps its text. Parsed, never evaluated.

Owns: the grammar and its inverse, `str(template)`. Must not know: tokenizers; what a literal becomes as
tokens, and how white space sticks to it, is the backbone's.

    {text}                  the input text; exactly once
    {text_pair}             the second text; at most once
    {mask}                  the tokenizer's mask token; any number
    {soft:20}               twenty virtual tokens
    {soft:"initial words"}  as many virtual tokens as the words have tokens; the trainer puts the number in
    {start}                 where the tokenizer's leading special tokens go; else after the leading soft slots
    {{  }}                  literal braces
    \"  \\                  a quote and a backslash inside the initial words
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prompt_store.errors import InvalidTemplate

MAX_SOFT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Literal:
    """Text of the template itself, white space kept exactly."""

    text: str

    def __str__(self) -> str:
        return self.text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True, slots=True)
class TextSlot:
    """Where the input text goes."""

    def __str__(self) -> str:
        return "{text}"


@dataclass(frozen=True, slots=True)
class PairSlot:
    """Where the second text goes."""

    def __str__(self) -> str:
        return "{text_pair}"


@dataclass(frozen=True, slots=True)
class MaskSlot:
    """One mask token."""

    def __str__(self) -> str:
        return "{mask}"


@dataclass(frozen=True, slots=True)
class SoftSlot:
    """Virtual tokens: `count` of them, or None while only the initial words `init` are known."""

    count: int | None = None
    init: str | None = None

    def __str__(self) -> str:
        if self.init is None:
            return f"{{soft:{self.count}}}"
        words = self.init.replace("\\", "\\\\").replace('"', '\\"')
        return f'{{soft:"{words}"}}'


@dataclass(frozen=True, slots=True)
class StartSlot:
    """Where the tokenizer's leading special tokens go."""

    def __str__(self) -> str:
        return "{start}"


Part = Literal | TextSlot | PairSlot | MaskSlot | SoftSlot | StartSlot


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template; made by `parse_template`. `str(template)` is its source."""

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return "".join(map(str, self.parts))

    @property
    def soft_slots(self) -> tuple[SoftSlot, ...]:
        """The soft slots, from left to right: the order of the rows of `soft_prompt`."""
        return tuple(part for part in self.parts if isinstance(part, SoftSlot))

    @property
    def is_resolved(self) -> bool:
        """Whether every soft slot has its number of virtual tokens."""
        return all(slot.count is not None for slot in self.soft_slots)

    @property
    def num_soft(self) -> int:
        """How many virtual tokens the template holds; InvalidTemplate while one slot has only its words."""
        if not self.is_resolved:
            raise InvalidTemplate('a {soft:"…"} slot has no number of virtual tokens yet: expected {soft:N}')
        return sum(slot.count or 0 for slot in self.soft_slots)

    @property
    def num_leading_soft(self) -> int:
        """How many virtual tokens stand before everything else; white space between them only separates."""
        count = 0
        for part in self.parts:
            if isinstance(part, SoftSlot):
                count += part.count or 0
            elif not (isinstance(part, Literal) and not part.text.strip()):
                break
        return count

    @property
    def num_masks(self) -> int:
        """How many mask tokens the template holds."""
        return sum(isinstance(part, MaskSlot) for part in self.parts)

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask token."""
        return self.num_masks > 0

    @property
    def has_pair(self) -> bool:
        """Whether a second text is asked for."""
        return any(isinstance(part, PairSlot) for part in self.parts)

    def resolve(self, counts: Sequence[int]) -> "Template":
        """The same template with `counts`, one per slot of initial words from left to right, put in.

        InvalidTemplate when there are more or fewer counts than such slots, or one is not in 1 … MAX_SOFT.
        """
        open_slots = sum(slot.count is None for slot in self.soft_slots)
        if len(counts) != open_slots:
            raise InvalidTemplate(f"expected {open_slots} numbers of virtual tokens, got {len(counts)}")
        for count in counts:
            if not 1 <= count <= MAX_SOFT:
                raise InvalidTemplate(f"expected 1 to {MAX_SOFT} virtual tokens, got {count}")
        remaining = iter(counts)
        return Template(
            tuple(
                SoftSlot(next(remaining)) if isinstance(part, SoftSlot) and part.count is None else part
                for part in self.parts
            )
        )


# Each alternative begins differently, so matching is linear in the length of the source.
_TOKEN = re.compile(
    r"(?P<literal>(?:[^{}]|\{\{|\}\})+)"
    r"|\{(?P<slot>text_pair|text|mask|start)\}"
    r"|\{soft:(?P<count>[1-9][0-9]{0,5})\}"
    r'|\{soft:"(?P<init>(?:[^"\\]|\\["\\])+)"\}'
)
_SLOTS: dict[str, type[TextSlot | PairSlot | MaskSlot | StartSlot]] = {
    "text": TextSlot,
    "text_pair": PairSlot,
    "mask": MaskSlot,
    "start": StartSlot,
}


def parse_template(source: str) -> Template:
    """Parse `source`; InvalidTemplate names the column, counted from 1."""
    parts: list[Part] = []
    position = 0
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None:
            raise InvalidTemplate(f"template, column {position + 1}: {_explain(source[position])}")
        part = _part(match, column=position + 1)
        if part in parts and isinstance(part, TextSlot | PairSlot | StartSlot):
            raise InvalidTemplate(f"template, column {position + 1}: {part} may stand only once")
        parts.append(part)
        position = match.end()
    if TextSlot() not in parts:
        raise InvalidTemplate(f"template, column {len(source) + 1}: expected {{text}}, got the end")
    return Template(tuple(parts))


def _part(match: re.Match[str], *, column: int) -> Part:
    if (literal := match["literal"]) is not None:
        return Literal(literal.replace("{{", "{").replace("}}", "}"))
    if (slot := match["slot"]) is not None:
        return _SLOTS[slot]()
    if (init := match["init"]) is not None:
        return SoftSlot(init=re.sub(r'\\(["\\])', r"\1", init))
    if (count := int(match["count"])) > MAX_SOFT:
        raise InvalidTemplate(
            f"template, column {column}: expected at most {MAX_SOFT} virtual tokens, got {count}"
        )
    return SoftSlot(count)


def _explain(character: str) -> str:
    if character == "}":
        return "a } without its {; write }} for a literal brace"
    return 'expected {text}, {text_pair}, {mask}, {start}, {soft:N} or {soft:"words"}; {{ is a literal brace'
