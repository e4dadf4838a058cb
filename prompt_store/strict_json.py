"""JSON from strangers: one meaning only, or a ValueError.

Owns: what is stricter here than `json.loads`. Must not know: what the JSON is for.
"""

import json
import math
from typing import Any, NoReturn


def strict_json(text: str) -> Any:
    """Parse `text`; ValueError for bad syntax, a repeated key, a number that is not finite, or too deep."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError as error:
        # The position only: the decoder's own message may quote the text.
        raise ValueError(f"not JSON at character {error.pos}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    # Two readers that keep different ones of two equal keys would disagree on what was checked.
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _short_int(text: str) -> int:
    if len(text) > 20:  # none of ours is longer, and reading digits costs the square of their number
        raise ValueError("a whole number has more than 20 digits")
    return int(text)


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large for a float")
    return value
