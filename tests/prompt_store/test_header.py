import json
from typing import Any

import pytest

from prompt_store import InvalidPrompt
from prompt_store.header import TensorEntry, read_header

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}


def header(**fields: Any) -> bytes:
    raw = json.dumps({"__metadata__": {"a": "b"}, "t": ENTRY | fields}).encode()
    return len(raw).to_bytes(8, "little") + raw


def test_a_header_is_read_with_its_size() -> None:
    data = header()
    read = read_header(data + b"the tensors")
    assert (read.size, read.metadata, read.tensors) == (
        len(data),
        {"a": "b"},
        {"t": TensorEntry("F32", (2, 3), 8, 32)},
    )
    assert read.tensors["t"].count == 6


def test_a_count_does_not_overflow() -> None:
    assert TensorEntry("F32", (2**40,) * 8, 0, 0).count == 2**320


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": [-2, -3]}, "shape"),
        ({"shape": [2**40 + 1]}, "shape"),
        ({"shape": [1] * 9}, "shape"),
        ({"shape": [True, 3]}, "shape"),
        ({"shape": [2.0, 3]}, "shape"),
        ({"shape": "23"}, "shape"),
        ({"data_offsets": [32, 8]}, "data_offsets"),
        ({"data_offsets": [-8, 16]}, "data_offsets"),
        ({"data_offsets": [8, 2**41]}, "data_offsets"),
        ({"data_offsets": [8]}, "data_offsets"),
        ({"data_offsets": [8, 32, 40]}, "data_offsets"),
        ({"data_offsets": {"begin": 8}}, "data_offsets"),
        ({"dtype": 1}, "dtype"),
        ({"more": 1}, "exactly dtype, shape and data_offsets"),
    ],
)
def test_an_entry_is_refused_by_the_header_itself(fields: dict[str, Any], message: str) -> None:
    """Not only by what the codec compares it with later."""
    with pytest.raises(InvalidPrompt, match=f"a tensor's entry: expected .*{message}"):
        read_header(header(**fields))
