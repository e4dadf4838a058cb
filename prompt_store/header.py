"""The header of a safetensors file: 8 bytes of length, then JSON that names the tensors.

Owns: reading a header from strangers, capped before it is parsed. Must not know: what the tensors mean.
Our own parser in place of the library's, which allows 100 MB and says nothing of repeated keys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from prompt_store.errors import InvalidPrompt, NotSafetensors
from prompt_store.strict_json import strict_json

MAX_HEADER: Final = 2**20
_MAX_TENSORS: Final = 256  # far more than any prompt has, few enough to describe
_MAX_RANK: Final = 8
_MAX_SIZE: Final = 2**40  # of one dimension or offset; a product of 8 of them is still a small number to us
_MAGIC: Final[Mapping[bytes, str]] = {
    b"PK": "a zip or torch.save file",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "a gzip file",
    b"\x93N": "an npy file",
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header tells it; begin and end count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        """How many values the shape holds; a Python int, so it cannot overflow."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """`size` is where the tensors' bytes begin."""

    size: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]


def read_header(data: bytes) -> Header:
    """Read the header; NotSafetensors when there is none, InvalidPrompt when there is but it is wrong."""
    length = _length(data)
    try:
        fields = strict_json(data[8 : 8 + length].decode())
    except UnicodeDecodeError as error:
        raise NotSafetensors(f"header: expected UTF-8, got another byte at {8 + error.start}") from None
    except ValueError as error:
        raise NotSafetensors(f"header: expected JSON, got something else: {error}") from None
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidPrompt("header: expected __metadata__ to map strings to strings")
    if len(fields) > _MAX_TENSORS:
        raise InvalidPrompt(f"header: expected at most {_MAX_TENSORS} tensors, got {len(fields)}")
    return Header(8 + length, metadata, {name: _entry(value) for name, value in fields.items()})


def _length(data: bytes) -> int:
    """The header's length, having seen that the header is there and may be read."""
    if data[8:9] != b"{":
        got = next(
            (what for magic, what in _MAGIC.items() if data.startswith(magic)), f"{len(data)} other bytes"
        )
        raise NotSafetensors(f"file: expected safetensors, got {got}")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise InvalidPrompt(f"header: expected at most {MAX_HEADER} bytes, got a claim of {length}")
    if length > len(data) - 8:
        raise InvalidPrompt(f"header: expected {length} bytes, got {len(data) - 8}: the file is torn")
    return length


def _entry(value: Any) -> TensorEntry:
    """One tensor's entry; its name is a stranger's until `codec` compares it, so no message has it."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str):
        _refuse("dtype to be a string")
    if not _is_sizes(shape) or len(shape) > _MAX_RANK:
        _refuse(f"shape to be at most {_MAX_RANK} whole numbers of 0 to {_MAX_SIZE}")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse("data_offsets to be two rising whole numbers")
    return TensorEntry(dtype, tuple(shape), *offsets)


def _is_sizes(value: Any) -> bool:
    # `type is int`: True is an int to isinstance.
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _MAX_SIZE for size in value)


def _refuse(expected: str) -> NoReturn:
    raise InvalidPrompt(f"header: a tensor's entry: expected {expected}, got something else")
