"""The compiled attention for CPUs: built once on a machine, kept in a cache, and done without where it cannot be.

Owns the compiler's command line, the cache of libraries, and the border to `kernels/attention.cpp`: which addresses
and strides it is given. Knows nothing of models or prompts. Stock attention wants rows padded and their keys gathered
beside their prefixes'; this one reads rows and prefixes where they are.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbone.errors import BackboneError

SOURCE = Path(__file__).parent / "kernels" / "attention.cpp"
# No flag that lets the compiler assume finite numbers: a NaN must stay one.
_FLAGS = (
    *("-O3", "-march=native", "-funroll-loops", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
_MOST_HEAD_DIM = 128
# A batch with more products of states than this is worth threads of its own, where the caller may use several.
_WORTH_THREADS = 1 << 24


class NativeUnavailable(BackboneError):
    """The compiled attention cannot be had here; the message says why."""


class _Rows(ctypes.Structure):
    """`struct Rows` of the source, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "output")),
        *((name, ctypes.c_int64) for name in ("query_token", "query_head", "key_token", "key_head")),
        *((name, ctypes.c_int64) for name in ("value_token", "value_head")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_void_p) for name in ("starts", "prefix_lengths", "prefix_keys", "prefix_values")),
        ("scaling", ctypes.c_float),
        ("causal", ctypes.c_int32),
        ("window", ctypes.c_int64),
        ("threads", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class PrefixAddresses:
    """Where a row's prefix is in memory: `length` tokens; layer i begins at `key + i · key_step`, values likewise."""

    length: int = 0
    key: int = 0
    key_step: int = 0
    value: int = 0
    value_step: int = 0

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> PrefixAddresses:
        """Addresses of a prefix whose layers lie one after another, each [length, kv_heads, head_dim]."""
        if not keys:
            return cls()
        for layers in (keys, values):
            step = layers[0].nbytes
            apart = all(
                layer.data_ptr() == layers[0].data_ptr() + at * step for at, layer in enumerate(layers)
            )
            if not apart or not layers[0].is_contiguous():
                raise ValueError("the layers of a prefix must be one contiguous tensor")
        return cls(len(keys[0]), keys[0].data_ptr(), keys[0].nbytes, values[0].data_ptr(), values[0].nbytes)


class NativeRows:
    """The addresses of one batch: built once, used in every layer."""

    def __init__(self, lengths: Sequence[int], prefixes: Sequence[PrefixAddresses]) -> None:
        """Of each row, its tokens in the line and its prefix. The caller keeps the prefixes' tensors alive."""
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        table = np.array(
            [(p.length, p.key, p.key_step, p.value, p.value_step) for p in prefixes], dtype=np.uint64
        ).reshape(-1, 5)
        self.prefix_lengths = table[:, 0].astype(np.int64)
        self._keys, self._key_steps, self._values, self._value_steps = table.T[1:].copy()
        spans = np.diff(self.starts)
        self.products = int((spans * (spans + self.prefix_lengths)).sum())

    def of_layer(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Addresses [rows] of the prefixes' keys and values in a layer."""
        step = np.uint64(layer)
        return self._keys + step * self._key_steps, self._values + step * self._value_steps


class NativeAttention:
    """The loaded library."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))  # its calls release the interpreter's lock
        self._functions: dict[torch.dtype, Any] = {
            torch.float32: loaded.packed_attention_float32,
            torch.bfloat16: loaded.packed_attention_bfloat16,
        }
        for function in self._functions.values():
            function.argtypes, function.restype = (ctypes.POINTER(_Rows),), ctypes.c_int

    def takes(self, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether states of this dtype and width can be attended."""
        return dtype in self._functions and head_dim <= _MOST_HEAD_DIM

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: NativeRows,
        layer: int,
        *,
        causal: bool,
        window: int | None,
        scaling: float | None,
    ) -> Tensor:
        """Attend each row to itself and its prefix: query [1, heads, T, head_dim] → [1, T, heads, head_dim].

        As `attention.packed_attention`, without gradients.
        """
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        _, heads, tokens, head_dim = query.shape
        if tokens != rows.starts[-1]:
            raise ValueError(f"{tokens} tokens, but rows of {rows.starts[-1]}")
        output = torch.empty(1, tokens, heads, head_dim, dtype=query.dtype)
        prefix_keys, prefix_values = rows.of_layer(layer)
        threads = torch.get_num_threads() if rows.products * heads * head_dim > _WORTH_THREADS else 1
        given = _Rows(
            query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr(),
            query.stride(2), query.stride(1), key.stride(2), key.stride(1), value.stride(2), value.stride(1),
            len(rows.prefix_lengths), heads, key.shape[1], head_dim,
            rows.starts.ctypes.data, rows.prefix_lengths.ctypes.data,
            prefix_keys.ctypes.data, prefix_values.ctypes.data,
            head_dim**-0.5 if scaling is None else scaling, causal, window or 0, threads,
        )  # fmt: skip
        if self._functions[query.dtype](ctypes.byref(given)) != 0:
            raise ValueError(f"heads of {head_dim} dimensions are wider than {_MOST_HEAD_DIM}")
        return output


def load_native(cache: Path) -> NativeAttention:
    """The compiled attention, from the cache or built now (some seconds).

    Raises:
        NativeUnavailable: there is no C++ compiler, it fails, or the library cannot be loaded.

    """
    source = SOURCE.read_bytes()
    compiler = _compiler()
    identity = hashlib.sha256()
    for part in (source, " ".join(_FLAGS).encode(), compiler.encode(), _processor().encode()):
        identity.update(hashlib.sha256(part).digest())
    library = cache / f"attention-{identity.hexdigest()[:16]}.so"
    try:
        if library.is_file():
            try:
                return NativeAttention(library)
            except OSError:
                pass  # torn, as by a full disk: made anew
        cache.mkdir(parents=True, exist_ok=True)
        _build(compiler, library)
        return NativeAttention(library)
    except OSError as error:
        raise NativeUnavailable(f"{library}: {error}") from error


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise NativeUnavailable("no C++ compiler (c++, g++ or clang++) on the PATH")


def _processor() -> str:
    """What the compiler's `native` means here: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    about = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(about)))


def _build(compiler: str, library: Path) -> None:
    """Compile beside the library and move it there whole: two processes may do so at once."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *_FLAGS, "-o", str(made), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines()
            raise NativeUnavailable(f"{compiler} failed: {said[0] if said else error}") from error
        except subprocess.TimeoutExpired as error:
            raise NativeUnavailable(f"{compiler} did not end within 300 s") from error
        made.replace(library)
