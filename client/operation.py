"""Owns what one call is, before anybody sends it: the request, how its answer is read, and whether it may be repeated.

Knows no routes and no network: `classify` and `admin` make operations, the transports carry them out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from client.errors import InvalidCall

T = TypeVar("T")


class Repeat(Enum):
    """Whether a call may be sent again after a failure that a second try may mend."""

    FREELY = "to do it twice is to do it once: reads, /classify, uploads by digest"
    GUARDED = "its If-Match lets at most one copy take effect; a refused copy does not say which"
    UNSENT = "only where the server surely did nothing: a second delete would hit what was put there since"
    NEVER = "the caller asks again itself"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. ValueError when it is none."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call. `read` may raise anything for an answer that is not as documented.

    `understood` are statuses besides 2xx that `read` takes; `timeout` None is the client's own.
    """

    method: str
    path: str
    read: Callable[[Reply], T]
    repeat: Repeat = Repeat.FREELY
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str | int] = field(default_factory=dict)
    content: bytes | None = None
    understood: Container[int] = ()
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and math.isnan(self.timeout):
            raise InvalidCall("timeout: expected seconds, got no number")


def json_body(value: object) -> bytes:
    """A body as JSON. InvalidCall for a text that is no Unicode, as one that was read with the wrong encoding is."""
    try:
        # Not as \\u escapes: they would make a body of other than Latin text twice as large.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise InvalidCall("a text has half a surrogate pair: it is no valid Unicode") from None
    except TypeError as error:
        raise InvalidCall(f"not to be sent as JSON: {error}") from None


def header_value(name: str, value: str) -> str:
    """A header's value as it is. InvalidCall, without the value, for one that no header can carry: it may be secret."""
    if value and value.isascii() and value.isprintable() and value == value.strip():
        return value
    raise InvalidCall(f"{name}: expected printable ASCII without spaces around it")


def segment(value: str) -> str:
    """A part of a path, whatever it holds. InvalidCall for what would lead to another path."""
    try:
        quoted = quote(value, safe="")
    except UnicodeEncodeError:
        raise InvalidCall("a name has half a surrogate pair: it is no valid Unicode") from None
    if value.strip(".") == "":
        raise InvalidCall("a name must not be empty or of dots alone")
    return quoted
