"""Uploads from strangers: each is refused with its class and a message that repeats nothing of it."""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prompt_store import (
    IncompatiblePrompt,
    InvalidPrompt,
    InvalidTemplate,
    NotSafetensors,
    PromptStore,
    Target,
    decode_prompt,
)

SECRET = "ECHO_ECHO"


class Parts:
    """A good file taken apart, so that a case can lie in one place and be right in all others."""

    def __init__(self, build: Any) -> None:
        self.good: bytes = build.prompt()
        size = int.from_bytes(self.good[:8], "little")
        self.header: dict[str, Any] = json.loads(self.good[8 : 8 + size])
        self.manifest: dict[str, Any] = json.loads(self.header["__metadata__"]["promptmux"])
        self.payload = self.good[8 + size :]

    def file(self, header: Any = None, payload: bytes | None = None, length: int | None = None) -> bytes:
        """Put together; `header` is text, bytes, or what JSON makes of it."""
        header = self.header if header is None else header
        text = header if isinstance(header, str | bytes) else json.dumps(header)
        raw = text.encode() if isinstance(text, str) else text
        claim = len(raw) if length is None else length
        return claim.to_bytes(8, "little") + raw + (self.payload if payload is None else payload)

    def tensor(self, name: str, **fields: Any) -> bytes:
        return self.file(self.header | {name: self.header[name] | fields})

    def extra(self, name: str, **fields: Any) -> bytes:
        return self.file(self.header | {name: {"dtype": "F32"} | fields})

    def offsets(self, move: Callable[[int, int], list[int]], payload: bytes | None = None) -> bytes:
        tensors = {name: entry for name, entry in self.header.items() if name != "__metadata__"}
        moved = {
            name: entry | {"data_offsets": move(*entry["data_offsets"])} for name, entry in tensors.items()
        }
        return self.file(self.header | moved, payload)

    def without(self, name: str) -> bytes:
        return self.file({key: value for key, value in self.header.items() if key != name})

    def said(self, text: str) -> bytes:
        """A file whose manifest is `text`."""
        return self.file(self.header | {"__metadata__": {"promptmux": text}})

    def claims(self, **fields: Any) -> bytes:
        return self.said(json.dumps(self.manifest | fields))

    def backbone(self, **fields: Any) -> bytes:
        return self.claims(backbone=self.manifest["backbone"] | fields)

    def values(self, name: str, values: Any) -> bytes:
        begin, end = self.header[name]["data_offsets"]
        dtype = {"F32": "<f4", "F16": "<f2"}[self.header[name]["dtype"]]
        count = (end - begin) // np.dtype(dtype).itemsize
        raw = np.full(count, values, dtype).tobytes()
        return self.file(payload=self.payload[:begin] + raw + self.payload[end:])


def torch_save() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"soft_prompt": [0.0]}))
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(9))
    return file.getvalue()


Case = Callable[[Parts], bytes]

NOT_SAFETENSORS: dict[str, Case] = {
    "empty": lambda p: b"",
    "one byte": lambda p: b"{",
    "seven bytes": lambda p: b"\0" * 7,
    "eight zeros": lambda p: b"\0" * 8,
    "a length and nothing else": lambda p: p.good[:8],
    "zeros": lambda p: b"\0" * 4096,
    "ones": lambda p: b"\xff" * 4096,
    "noise": lambda p: np.random.default_rng(0).bytes(100_000),
    "text": lambda p: SECRET.encode() * 100,
    "JSON": lambda p: json.dumps(p.header).encode(),
    "HTML": lambda p: b"<!doctype html><html></html>",
    "pickle protocol 0": lambda p: pickle.dumps({"soft_prompt": [0.0] * 9}, 0),
    "pickle protocol 2": lambda p: pickle.dumps({"soft_prompt": [0.0] * 9}, 2),
    "pickle protocol 5": lambda p: pickle.dumps({"soft_prompt": [0.0] * 9}, 5),
    "torch.save": lambda p: torch_save(),
    "gzip of a good file": lambda p: gzip.compress(p.good),
    "npy": lambda p: npy(),
    "GGUF": lambda p: b"GGUF" + b"\3\0\0\0" * 9,
    "a good file after one byte": lambda p: b" " + p.good,
    "a good file without its first byte": lambda p: p.good[1:],
    "header of no bytes": lambda p: (0).to_bytes(8, "little") + b"{}",
    "header of one byte": lambda p: (1).to_bytes(8, "little") + b"{}",
    "header is a list": lambda p: p.file([p.header]),
    "header is a string": lambda p: p.file('"header"'),
    "header starts with a space": lambda p: p.file(" " + json.dumps(p.header)),
    "header has a byte order mark": lambda p: p.file(b"\xef\xbb\xbf" + json.dumps(p.header).encode()),
    "header is UTF-16": lambda p: p.file(json.dumps(p.header).encode("utf-16-le")),
    "header is Latin-1": lambda p: p.file(b'{"\xe9": 1}'),
    "header is cut JSON": lambda p: p.file(json.dumps(p.header)[:-1]),
    "header has two values": lambda p: p.file(json.dumps(p.header) + "{}"),
    "header ends in NULs": lambda p: p.file(json.dumps(p.header) + "\0\0"),
    "header has a comment": lambda p: p.file("{/**/" + json.dumps(p.header)[1:]),
    "header nests arrays 400,000 deep": lambda p: p.file('{"a":' + "[" * 400_000),
    "header nests objects 100,000 deep": lambda p: p.file('{"a":' * 100_000 + "1" + "}" * 100_000),
    "header repeats a tensor": lambda p: p.file(json.dumps(p.header)[:-1] + ',"soft_prompt":{}}'),
    "header repeats the metadata": lambda p: p.file(json.dumps(p.header)[:-1] + ',"__metadata__":{}}'),
    "an entry repeats its shape": lambda p: p.file(
        json.dumps(p.header).replace('"dtype": "F32"', '"dtype": "F32", "dtype": "F32"')
    ),
    "header has NaN": lambda p: p.file(json.dumps(p.header | {"a": float("nan")})),
    "header has Infinity": lambda p: p.file(json.dumps(p.header | {"a": float("-inf")})),
    "header has 1e999": lambda p: p.file('{"a": 1e999}'),
    "header has a number of 100,000 digits": lambda p: p.file('{"a": ' + "9" * 100_000 + "}"),
}

INVALID: dict[str, Case] = {
    "header claims 2**64 - 1 bytes": lambda p: p.file(length=2**64 - 1),
    "header claims 100 GB": lambda p: p.file(length=100 * 2**30),
    "header one byte above the cap": lambda p: p.file(length=2**20 + 1),
    "header is longer than the file": lambda p: p.file(length=100_000),
    "torn in the header": lambda p: p.good[:200],
    "torn in the tensors": lambda p: p.good[:-1],
    "torn before the tensors": lambda p: p.file(payload=b""),
    "a byte more": lambda p: p.good + b"\0",
    "two files in one": lambda p: p.good * 2,
    "a zip behind a good file": lambda p: p.good + torch_save(),
    "no tensors, no metadata": lambda p: p.file({}, b""),
    "no metadata": lambda p: p.without("__metadata__"),
    "metadata is a list": lambda p: p.file(p.header | {"__metadata__": []}),
    "metadata maps to an object": lambda p: p.file(p.header | {"__metadata__": {"promptmux": p.manifest}}),
    "metadata is empty": lambda p: p.file(p.header | {"__metadata__": {}}),
    "metadata has another key": lambda p: p.file(
        p.header | {"__metadata__": p.header["__metadata__"] | {SECRET: "pt"}}
    ),
    "100,000 tensors": lambda p: p.file({f"{i}": 0 for i in range(100_000)}),
    "an unknown tensor": lambda p: p.extra(SECRET, shape=[0], data_offsets=[0, 0]),
    "a path as a tensor's name": lambda p: p.extra("../../" + SECRET, shape=[0], data_offsets=[0, 0]),
    "a tensor missing": lambda p: p.without("soft_prompt"),
    "a head bias missing": lambda p: p.without("head.0.bias"),
    "half a prefix": lambda p: p.extra("prefix.encoder.key", shape=[2, 1, 2, 4], data_offsets=[0, 64]),
    "an entry is null": lambda p: p.file(p.header | {"soft_prompt": None}),
    "an entry is a list": lambda p: p.file(p.header | {"soft_prompt": []}),
    "an entry without a shape": lambda p: p.file(p.header | {"soft_prompt": {"dtype": "F32"}}),
    "an entry with another key": lambda p: p.tensor("soft_prompt", **{SECRET: 1}),
    "dtype F64": lambda p: p.tensor("soft_prompt", dtype="F64"),
    "dtype BF16": lambda p: p.tensor("soft_prompt", dtype="BF16"),
    "dtype I32": lambda p: p.tensor("soft_prompt", dtype="I32"),
    "dtype of a stranger": lambda p: p.tensor("soft_prompt", dtype=SECRET),
    "dtype in lower case": lambda p: p.tensor("soft_prompt", dtype="f32"),
    "dtype is a list": lambda p: p.tensor("soft_prompt", dtype=["F32"]),
    "dtype F16 over F32's bytes": lambda p: p.tensor("soft_prompt", dtype="F16"),
    "shape of 2**40": lambda p: p.tensor("soft_prompt", shape=[2**40, 2**40]),
    "shape above 2**64": lambda p: p.tensor("soft_prompt", shape=[2**65, 6]),
    "shape that wraps round to the right product": lambda p: p.tensor(
        "soft_prompt", shape=[2**32, 2**32, 18]
    ),
    "shape negative": lambda p: p.tensor("soft_prompt", shape=[-3, -6]),
    "shape with a zero": lambda p: p.tensor("soft_prompt", shape=[0, 6]),
    "shape of floats": lambda p: p.tensor("soft_prompt", shape=[3.0, 6.0]),
    "shape of strings": lambda p: p.tensor("soft_prompt", shape=["3", "6"]),
    "shape of booleans": lambda p: p.tensor("head.0.bias", shape=[True]),
    "shape is a number": lambda p: p.tensor("soft_prompt", shape=18),
    "shape is a nested list": lambda p: p.tensor("soft_prompt", shape=[[3, 6]]),
    "shape of rank 0": lambda p: p.tensor("soft_prompt", shape=[]),
    "shape of rank 1": lambda p: p.tensor("soft_prompt", shape=[18]),
    "shape of rank 3": lambda p: p.tensor("soft_prompt", shape=[1, 3, 6]),
    "shape of rank 100,000": lambda p: p.tensor("soft_prompt", shape=[1] * 100_000),
    "shape transposed": lambda p: p.tensor("soft_prompt", shape=[6, 3]),
    "one row fewer than the template": lambda p: p.tensor("soft_prompt", shape=[2, 6]),
    "offsets overlap": lambda p: p.tensor("head.0.bias", data_offsets=[4, 12]),
    "offsets leave a hole": lambda p: p.offsets(lambda a, b: [a + 8, b + 8], b"\0" * 8 + p.payload),
    "offsets beyond the file": lambda p: p.tensor("soft_prompt", data_offsets=[8, 2**39]),
    "offsets above 2**64": lambda p: p.tensor("soft_prompt", data_offsets=[2**64, 2**64 + 72]),
    "offsets negative": lambda p: p.tensor("soft_prompt", data_offsets=[-72, 0]),
    "offsets fall": lambda p: p.tensor("soft_prompt", data_offsets=[80, 8]),
    "offsets of floats": lambda p: p.tensor("soft_prompt", data_offsets=[8.0, 80.0]),
    "three offsets": lambda p: p.tensor("soft_prompt", data_offsets=[8, 40, 80]),
    "offsets are null": lambda p: p.tensor("soft_prompt", data_offsets=None),
    "all tensors share the same bytes": lambda p: p.offsets(lambda a, b: [0, b - a]),
    "NaN in F32": lambda p: p.values("soft_prompt", np.nan),
    "infinity in F32": lambda p: p.values("soft_prompt", np.inf),
    "minus infinity in F16": lambda p: p.values("head.0.weight", -np.inf),
    "NaN in F16": lambda p: p.values("head.0.weight", np.nan),
    "manifest is empty": lambda p: p.said(""),
    "manifest is no JSON": lambda p: p.said(SECRET),
    "manifest is null": lambda p: p.said("null"),
    "manifest is a list": lambda p: p.said("[]"),
    "manifest is {}": lambda p: p.said("{}"),
    "manifest nests 100,000 deep": lambda p: p.said('{"training":{"a":' + "[" * 100_000),
    "manifest repeats a key": lambda p: p.said(json.dumps(p.manifest)[:-1] + ',"task_id":"other"}'),
    "manifest repeats a key deep down": lambda p: p.said(
        json.dumps(p.manifest).replace('"training": {}', '"training": {"a": {"b": 1, "b": 2}}')
    ),
    "manifest has NaN": lambda p: p.said(json.dumps(p.manifest | {"training": {"a": float("nan")}})),
    "manifest has a lone surrogate": lambda p: p.claims(labels=["a", "\ud800"]),
    "manifest with an unknown key": lambda p: p.claims(**{SECRET: 1}),
    "task id climbs out": lambda p: p.claims(task_id="../../etc/" + SECRET),
    "task id with a newline": lambda p: p.claims(task_id="a\n"),
    "task id is a number": lambda p: p.claims(task_id=1),
    "labels say three": lambda p: p.claims(labels=["a", "b", "c"]),
    "labels are equal": lambda p: p.claims(labels=[SECRET, SECRET]),
    "head of another width": lambda p: p.claims(
        head={"type": "linear", "layers": [{"in_features": 9, "out_features": 2}]}
    ),
    "head wider than the tensor": lambda p: p.claims(
        head={
            "type": "linear",
            "layers": [{"in_features": 8, "out_features": 99}, {"in_features": 99, "out_features": 2}],
        }
    ),
    "head of no known type": lambda p: p.claims(head={"type": SECRET}),
    "backbone of another embedding width": lambda p: p.backbone(embedding_width=7),
    "backbone of width 10**9": lambda p: p.backbone(embedding_width=10**9),
    "backbone without a fingerprint": lambda p: p.backbone(fingerprint=""),
    "fingerprint that breaks a log line": lambda p: p.backbone(fingerprint="a\n" + SECRET),
    "pooling out of range": lambda p: p.claims(pooling=10**18),
    "temperature 0": lambda p: p.claims(calibration={"temperature": 0}),
    "temperature as text": lambda p: p.claims(calibration={"temperature": "1"}),
    "multi_label as a number": lambda p: p.claims(multi_label=1),
}

TEMPLATES: dict[str, Case] = {
    "template of a format string": lambda p: p.claims(template="{text.__class__.__mro__} " + SECRET),
    "template without text": lambda p: p.claims(template="{soft:3}"),
    "template of another count": lambda p: p.claims(template="{soft:99999999}{text}"),
    "template with an open count": lambda p: p.claims(template='{soft:"' + SECRET + '"}{text}'),
    "template of braces": lambda p: p.claims(template="{" * 4096),
}

INCOMPATIBLE: dict[str, Case] = {
    "kind tag": lambda p: p.claims(kind="tag"),
    "kind generate": lambda p: p.claims(kind="generate"),
    "format 2": lambda p: p.claims(format=2),
    "format 10**18": lambda p: p.claims(format=10**18),
}

CASES = [
    pytest.param(case, error, id=name)
    for cases, error in [
        (NOT_SAFETENSORS, NotSafetensors),
        (INVALID, InvalidPrompt),
        (TEMPLATES, InvalidTemplate),
        (INCOMPATIBLE, IncompatiblePrompt),
    ]
    for name, case in cases.items()
]


@pytest.fixture(scope="module")
def parts(build: Any) -> Parts:
    return Parts(build)


def test_the_parts_put_together_are_a_good_file(parts: Parts) -> None:
    """Else every case below would be refused for the wrong reason."""
    assert decode_prompt(parts.file()) == decode_prompt(parts.good)
    assert decode_prompt(parts.claims()) == decode_prompt(parts.good)
    assert decode_prompt(parts.offsets(lambda begin, end: [begin, end])) == decode_prompt(parts.good)
    assert decode_prompt(parts.tensor("soft_prompt")) == decode_prompt(parts.good)
    assert decode_prompt(parts.values("head.0.bias", 0.0)) == decode_prompt(parts.good)


@pytest.mark.parametrize(("case", "error"), CASES)
def test_it_is_refused_and_not_repeated(parts: Parts, case: Case, error: type[InvalidPrompt]) -> None:
    with pytest.raises(InvalidPrompt) as caught:
        decode_prompt(case(parts))
    assert type(caught.value) is error
    message = str(caught.value)
    assert SECRET.lower() not in message.lower()
    assert message.isprintable()
    assert 10 < len(message) < 400
    assert "expected" in message or message.startswith(("manifest: ", "header: ", "template", "kind "))


def test_a_file_above_the_cap_is_refused_before_it_is_read(parts: Parts) -> None:
    with pytest.raises(InvalidPrompt, match=f"file: expected at most 100 bytes, got {len(parts.good)}"):
        decode_prompt(parts.good, max_bytes=100)
    assert decode_prompt(parts.good, max_bytes=len(parts.good)) == decode_prompt(parts.good)


async def test_none_of_them_moves_the_store(parts: Parts, store: PromptStore) -> None:
    published = await store.publish(parts.good)
    await store.set_alias("sentiment", "current", [Target(published.version)], expected_revision=0)
    before = await store.list()
    for case in [*NOT_SAFETENSORS.values(), *INVALID.values(), *TEMPLATES.values(), *INCOMPATIBLE.values()]:
        with pytest.raises(InvalidPrompt):
            await store.publish(case(parts))
    assert await store.list() == before
    assert await store.get("sentiment", published.version) == parts.good
