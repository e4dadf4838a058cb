"""The stock model recorded as a graph, which runs without Python between its operators.

Owns the recording (`torch.jit.trace`) and the check that it gives bit for bit what the model gives, at other lengths
and positions than it was recorded at. Knows nothing of prompts, and of rows only what it is handed.

A small forward spends a quarter of its time in Python, and two of them on two cores wait for each other's turn at the
interpreter's lock. A recorded model takes the lock only for its attention, once a layer. A model whose code decides by
values (lengths, positions) cannot be recorded. The check finds that where one of the samples crosses the border, and
the model itself is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbone import attention
from backbone.attention import PackedBatch
from backbone.errors import UnsupportedBackbone

_jit: Any = torch.jit  # untyped
Inputs = dict[str, Tensor]  # of the stock model, without the batch


class NotRecordable(Exception):
    """The model does something that a graph cannot hold; the message says what."""


class RecordedModel:
    """Stands for the model where no gradient is asked for. Safe to call from several threads."""

    def __init__(
        self, base: nn.Module, fixed: Mapping[str, Any], samples: Sequence[tuple[Inputs, PackedBatch]]
    ) -> None:
        """Record `base` on the first sample, and compare with it on all of them; `fixed` are arguments of every call.

        Raises NotRecordable.
        """
        inputs, batch = samples[0]
        names = tuple(inputs)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                # The tracer's warnings are about values that it takes for constants: the check below is about those.
                warnings.simplefilter("ignore")
                wrapped = _Positional(base, fixed, names).eval()
                with attention.attending(batch):
                    self._graph: Any = _jit.trace(
                        wrapped, tuple(inputs.values()), check_trace=False, strict=False
                    )
                for given, own in samples:
                    self._compare(base, fixed, given, own)
        except (NotRecordable, UnsupportedBackbone):
            raise
        except Exception as error:  # whatever a model does under the tracer, it still serves itself
            first = next(iter(str(error).splitlines()), "")
            raise NotRecordable(f"{type(error).__name__}: {first}") from error

    def __call__(self, inputs: Inputs, batch: PackedBatch) -> Tensor:
        """Last hidden states [1, T, hidden], as the model gives them."""
        # Without its optimiser: that one specialises on the first shapes it meets, and rows come in all lengths.
        with attention.attending(batch), _jit.optimized_execution(False):
            hidden: Tensor = self._graph(*inputs.values())
        return hidden

    def _compare(self, base: nn.Module, fixed: Mapping[str, Any], inputs: Inputs, batch: PackedBatch) -> None:
        batch.calls = 0
        expected = base(**inputs, **fixed, **{attention.KEYWORD: batch})[0]
        calls, batch.calls = batch.calls, 0
        got = self(inputs, batch)
        if batch.calls != calls or not torch.equal(got, expected):
            raise NotRecordable("the recorded model computes something else at other lengths or positions")


class _Positional(nn.Module):
    """The model with positional arguments, as the tracer wants them."""

    def __init__(self, base: nn.Module, fixed: Mapping[str, Any], names: tuple[str, ...]) -> None:
        super().__init__()
        self.base, self.fixed, self.names = base, fixed, names

    def forward(self, *values: Tensor) -> Tensor:
        given = dict(zip(self.names, values, strict=True))
        hidden: Tensor = self.base(**given, **self.fixed, **{attention.KEYWORD: attention.current()})[0]
        return hidden
