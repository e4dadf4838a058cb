"""The compiled attention for CPUs, and its gradients.

Owns the border to `kernels/attention.cpp`: which addresses and strides it is given, and how autograd sees it. Knows
nothing of models or prompts, and nothing of how the library came to be (`backbone.compiler`). Stock attention wants
rows padded and their keys gathered beside their prefixes'; this one reads rows and prefixes where they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LANES = 16  # floats in one vector of the source
MOST_VECTORS = 8  # heads up to 128 wide, as all tested families have; wider ones attend by torch's operators
# A batch with more products of states than this is worth threads of its own, where the caller may use several.
_WORTH_THREADS = 1 << 24


class _Rows(ctypes.Structure):
    """`struct Rows` of the source, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "output", "logsumexp")),
        *((name, ctypes.c_int64) for name in ("query_token", "query_head", "key_token", "key_head")),
        *((name, ctypes.c_int64) for name in ("value_token", "value_head")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_void_p) for name in ("starts", "prefix_lengths", "prefix_keys", "prefix_values")),
        ("scaling", ctypes.c_float),
        ("causal", ctypes.c_int32),
        ("window", ctypes.c_int64),
        ("threads", ctypes.c_int32),
    )


class _Gradients(ctypes.Structure):
    """`struct Gradients` of the source, field by field."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            "output_gradient",
            "query",
            "key",
            "value",
            "prefix_key",
            "prefix_value",
            "prefix_starts",
        )
    )


@dataclass(frozen=True, slots=True)
class PrefixAddresses:
    """Where a row's prefix is in memory: `length` tokens; layer i begins at `key + i · key_step`, values likewise."""

    length: int = 0
    key: int = 0
    key_step: int = 0
    value: int = 0
    value_step: int = 0
    states: tuple[torch.dtype, int, int] | None = None  # dtype, kv_heads, head_dim

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
        if keys[0].shape != values[0].shape or keys[0].dtype != values[0].dtype:
            raise ValueError("keys and values of a prefix must be alike")
        length, kv_heads, head_dim = keys[0].shape
        addresses = keys[0].data_ptr(), keys[0].nbytes, values[0].data_ptr(), values[0].nbytes
        return cls(length, *addresses, (keys[0].dtype, kv_heads, head_dim))


class NativeRows:
    """The addresses of one batch: built once, used in every layer."""

    def __init__(
        self, lengths: Sequence[int], prefixes: Sequence[PrefixAddresses], prefix_starts: Sequence[int]
    ) -> None:
        """Of each row: its tokens in the line, its prefix, and where that begins among the batch's prefix tokens.

        The caller keeps the prefixes' tensors alive.
        """
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        table = np.array(
            [(p.length, p.key, p.key_step, p.value, p.value_step) for p in prefixes], dtype=np.uint64
        ).reshape(-1, 5)
        self.prefix_lengths = table[:, 0].astype(np.int64)
        self.prefix_starts = np.array(prefix_starts, dtype=np.int64)
        self._prefix_states = {p.states for p in prefixes if p.states is not None}
        self._keys, self._key_steps, self._values, self._value_steps = table.T[1:].copy()
        spans = np.diff(self.starts)
        self.products = int((spans * (spans + self.prefix_lengths)).sum())

    def fit(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Raise ValueError where reading these states by these addresses would read something else."""
        _, heads, tokens, head_dim = query.shape
        like = (1, key.shape[1], tokens, head_dim)
        if (
            query.shape[0] != 1
            or tokens != self.starts[-1]
            or tuple(key.shape) != like
            or value.shape != key.shape
        ):
            raise ValueError(
                f"{self.starts[-1]} tokens in rows, but query {tuple(query.shape)}, key {tuple(key.shape)}, "
                f"value {tuple(value.shape)}"
            )
        if heads % key.shape[1] or not query.dtype == key.dtype == value.dtype:
            raise ValueError(f"{heads} heads over {key.shape[1]}, {query.dtype}, {key.dtype}, {value.dtype}")
        states = (query.dtype, key.shape[1], head_dim)
        if self._prefix_states and self._prefix_states != {states}:
            raise ValueError(f"prefixes of {self._prefix_states}, but states of {states}")

    def of_layer(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Addresses [rows] of the prefixes' keys and values in a layer, where the prompts keep them."""
        step = np.uint64(layer)
        return self._keys + step * self._key_steps, self._values + step * self._value_steps

    def within(self, keys: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Addresses [rows] of the prefixes in tensors [prefix tokens, kv_heads, head_dim] that hold them all."""
        found = [
            np.uint64(x.data_ptr()) + (self.prefix_starts * x.stride(0) * x.element_size()).astype(np.uint64)
            for x in (keys, values)
        ]
        return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Reach:
    """What a query sees of its own row, as `packed_attention` is told; `scaling` None: by the head's width."""

    causal: bool
    window: int | None
    scaling: float | None


def vectors_of(head_dim: int) -> int:
    """How many vectors a head's state fills."""
    return -(-head_dim // LANES)


class NativeAttention:
    """The loaded library."""

    def __init__(self, library: Path, vectors: int) -> None:
        """`vectors` says for which width of heads it was compiled. Raises OSError when it cannot be loaded."""
        self._vectors = vectors
        loaded = ctypes.CDLL(str(library))  # its calls release the interpreter's lock
        self._functions: dict[torch.dtype, Any] = {
            torch.float32: loaded.packed_attention_float32,
            torch.bfloat16: loaded.packed_attention_bfloat16,
        }
        for function in self._functions.values():
            function.argtypes = (ctypes.POINTER(_Rows), ctypes.POINTER(_Gradients))
            function.restype = ctypes.c_int

    def takes(self, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether states of this dtype and width can be attended."""
        return dtype in self._functions and vectors_of(head_dim) == self._vectors

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, rows: NativeRows, layer: int, reach: Reach
    ) -> Tensor:
        """Attend each row to itself and its prefix: query [1, heads, T, head_dim] → [1, T, heads, head_dim].

        key and value are [1, kv_heads, T, head_dim]. Without gradients.
        """
        output = _output_for(query)
        self._run(query, key, value, rows, rows.of_layer(layer), reach, output, None)
        return output

    def learn(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        rows: NativeRows,
        reach: Reach,
    ) -> Tensor:
        """The same with gradients; prefixes of all rows are [prefix tokens, kv_heads, head_dim]."""
        learned: Tensor = _Learning.apply(  # type: ignore[no-untyped-call]
            query, key, value, prefix_key, prefix_value, self, rows, reach
        )
        return learned

    def _run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: NativeRows,
        prefixes: tuple[np.ndarray, np.ndarray],
        reach: Reach,
        output: Tensor,
        logsumexp: Tensor | None,
        gradients: _Gradients | None = None,
    ) -> None:
        rows.fit(query, key, value)
        if reach.window is not None and reach.window < 1:
            raise ValueError(f"a window of {reach.window} tokens")
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        _, heads, _tokens, head_dim = query.shape
        threads = torch.get_num_threads() if rows.products * heads * head_dim > _WORTH_THREADS else 1
        given = _Rows(
            query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr(),
            None if logsumexp is None else logsumexp.data_ptr(),
            query.stride(2), query.stride(1), key.stride(2), key.stride(1), value.stride(2), value.stride(1),
            len(rows.prefix_lengths), heads, key.shape[1], head_dim,
            rows.starts.ctypes.data, rows.prefix_lengths.ctypes.data,
            prefixes[0].ctypes.data, prefixes[1].ctypes.data,
            head_dim**-0.5 if reach.scaling is None else reach.scaling, reach.causal, reach.window or 0, threads,
        )  # fmt: skip
        more = None if gradients is None else ctypes.byref(gradients)
        if not self.takes(query.dtype, head_dim):
            raise ValueError(f"compiled for other states than {query.dtype} of {head_dim} dimensions")
        if self._functions[query.dtype](ctypes.byref(given), more) != 0:
            raise MemoryError("the compiled attention found no memory for its work")


def _output_for(query: Tensor) -> Tensor:
    _, heads, tokens, head_dim = query.shape
    return torch.empty(1, tokens, heads, head_dim, dtype=query.dtype)


class _Learning(torch.autograd.Function):
    """The attention as autograd knows it: prefixes come as tensors, and what the gradients need is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        native: NativeAttention,
        rows: NativeRows,
        reach: Reach,
    ) -> Tensor:
        prefix_key, prefix_value = prefix_key.contiguous(), prefix_value.contiguous()
        output = _output_for(query)
        logsumexp = torch.empty(output.shape[1:3], dtype=torch.float32)
        prefixes = rows.within(prefix_key, prefix_value)
        native._run(query, key, value, rows, prefixes, reach, output, logsumexp)
        ctx.save_for_backward(query, key, value, prefix_key, prefix_value, output, logsumexp)
        ctx.native, ctx.rows, ctx.reach = native, rows, reach
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, prefix_key, prefix_value, output, logsumexp = ctx.saved_tensors
        given = given.contiguous()
        # [1, T, heads, head_dim], handed back as the transposed view that came in
        made = [
            torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format)
            for x in (query, key, value)
        ]
        of_prefixes = [torch.zeros(x.shape, dtype=torch.float32) for x in (prefix_key, prefix_value)]
        rows: NativeRows = ctx.rows
        gradients = _Gradients(
            given.data_ptr(), *(x.data_ptr() for x in (*made, *of_prefixes)), rows.prefix_starts.ctypes.data
        )
        prefixes = rows.within(prefix_key, prefix_value)
        ctx.native._run(query, key, value, rows, prefixes, ctx.reach, output, logsumexp, gradients)
        to_prefixes = (x.to(prefix_key.dtype) for x in of_prefixes)
        return *(x.transpose(1, 2) for x in made), *to_prefixes, None, None, None
