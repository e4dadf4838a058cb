"""Tables of the reference, and what a field takes in words. Knows nothing of any page."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def type_of(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a field takes, as a person reads it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated
        return type_of(inner[0], [*annotation.__metadata__, *metadata])
    if metadata and isinstance(metadata[0], FieldInfo):  # Annotated[..., Field(...)] within another type
        metadata = [one for field in metadata for one in getattr(field, "metadata", [field])]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (types.UnionType, Union):
        return " or ".join(type_of(one, metadata) if one is not type(None) else "null" for one in inner)
    if origin is tuple:
        return f"list of {type_of(inner[0])}{bounds(metadata).replace('length', 'items')}"
    if origin is dict:
        return "object"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names.get(annotation, str(annotation)) + bounds(metadata)


def bounds(metadata: Sequence[Any]) -> str:
    """The limits that a field's metadata sets."""
    shown = []
    for one in metadata:
        for attribute, sign in (("ge", "≥ "), ("gt", "> "), ("le", "≤ "), ("lt", "< ")):
            if getattr(one, attribute, None) is not None:
                shown.append(f"{sign}{getattr(one, attribute):,}")
        for attribute, sign in (("min_length", "length ≥ "), ("max_length", "length ≤ ")):
            if getattr(one, attribute, None) is not None:
                shown.append(f"{sign}{getattr(one, attribute):,}")
        if pattern := getattr(one, "pattern", None):
            shown.append(f"`{pattern}`")
    return f" ({', '.join(shown)})" if shown else ""


def default_of(field: FieldInfo) -> str:
    """A field's default, or that there is none."""
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value in (None, (), {}):
        return "–"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return f"`{value}`"
