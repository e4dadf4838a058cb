"""Linear layers on CPUs in bfloat16: rows kept apart, weights laid out once, and their GELU in the same pass.

Owns the replacement of a stock model's linear layers. oneDNN multiplies by a weight in a layout of its own and makes
that layout anew at every call unless it is kept; it can also apply GELU while the products are still in registers. Both
are inference only: where a gradient is asked for, the layer is the stock one. Knows nothing of prompts.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.pytorch_utils import Conv1D

_jit: Any = torch.jit  # untyped
# What AMX multiplies at once of a row in bfloat16.
_TILE = 32


class PaddedLinear(nn.Module):
    """A frozen `nn.Linear` or `Conv1D` whose rows are made a multiple of AMX's tile, those of its gradients too.

    Behind a row that ends within a tile, oneDNN reads on into the next row, and multiplies what it finds by zeros: that
    is nothing for numbers, but NaN for what is not finite, and then one broken prompt breaks its neighbours. Products
    read rows of `in_features`, gradients rows of `out_features`.
    """

    def __init__(self, stock: nn.Linear | Conv1D) -> None:
        super().__init__()
        weight = stock.weight.data.T if isinstance(stock, Conv1D) else stock.weight.data
        self.out_features, self.in_features = weight.shape
        self._spare_in, self._spare_out = -self.in_features % _TILE, -self.out_features % _TILE
        spare = (0, self._spare_in, 0, self._spare_out)
        self._wide: Tensor
        self.register_buffer("_wide", F.pad(weight, spare) if any(spare) else weight, persistent=False)
        # The same memory: who trains one trains both.
        narrow = self._wide[: self.out_features, : self.in_features]
        self._turned = isinstance(stock, Conv1D)
        self.weight = nn.Parameter(narrow.T if self._turned else narrow, requires_grad=False)
        self.bias = stock.bias

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] → [..., out_features]."""
        if self.weight.requires_grad:  # a model that is trained itself has one prompt at most
            return F.linear(states, self.weight.T if self._turned else self.weight, self.bias)
        if self._spare_out and torch.is_grad_enabled() and states.requires_grad:
            bias = None if self.bias is None else F.pad(self.bias, (0, self._spare_out))
            result = F.linear(self._padded(states), self._wide, bias)
            return result[..., : self.out_features].contiguous()
        return F.linear(self._padded(states), self._wide[: self.out_features], self.bias)

    def _padded(self, states: Tensor) -> Tensor:
        return F.pad(states, (0, self._spare_in)) if self._spare_in else states


class PackedLinear(PaddedLinear):
    """`nn.Linear` of a frozen weight in oneDNN's layout, with GELU behind it if asked for."""

    def __init__(self, stock: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__(stock)
        self._packed: Tensor
        self.gelu = gelu
        with torch.no_grad():
            packed: Tensor = _ops()._reorder_linear_weight(self._wide[: self.out_features], None)
        # A buffer, so that a recorded model refers to it; the state that is saved stays the stock model's.
        self.register_buffer("_packed", packed, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] → [..., out_features]."""
        if torch.is_grad_enabled() and (states.requires_grad or self.weight.requires_grad):
            result = super().forward(states)
            return F.gelu(result) if self.gelu else result
        states = self._padded(states)
        if _jit.is_tracing():  # the tracer cannot write down the call's empty list; a script can
            call = _scripted().linear_gelu if self.gelu else _scripted().linear
            scripted: Tensor = call(states, self._packed, self.bias)
            return scripted
        name, variant = ("gelu", "none") if self.gelu else ("none", "")
        packed: Tensor = _ops()._linear_pointwise(states, self._packed, self.bias, name, [], variant)
        return packed


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether packed layers are to be had: oneDNN's operators, bfloat16, and a CPU that multiplies it natively."""
    cpu_bf16 = device.type == "cpu" and dtype is torch.bfloat16
    wanted = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not cpu_bf16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return all(hasattr(_ops(), name) for name in wanted) and bool(_ops()._is_mkldnn_bf16_supported())


def keep_rows_apart(model: nn.Module) -> int:
    """Replace what would let a row that is not finite reach the next one; returns how many layers that were.

    What would make a row fail by the length of its neighbours is switched off, for every dtype and device.

    Of those, only bfloat16 on CPUs is concerned. The language-model head is left alone: its rows are multiplied in
    float32.
    """
    for module in model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            # Parts of a line, to save memory: the numbers are the same, and a line that is no multiple fails.
            module.chunk_size_feed_forward = 0  # type: ignore[assignment]
    count = 0
    head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # Not their subclasses: those above have done it already, others compute in ways of their own.
            if child is head or not (type(child) is nn.Linear or type(child) is Conv1D):
                continue
            odd = any(width % _TILE for width in child.weight.shape)
            if odd and child.weight.dtype is torch.bfloat16 and child.weight.device.type == "cpu":
                setattr(parent, name, PaddedLinear(child))
                count += 1
    return count


def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers inside `model` by packed ones; returns how many there were.

    Where a block follows a layer named `dense` by the activation `intermediate_act_fn` (BERT and its kin), an exact
    GELU moves into the layer.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                gelu = name == "dense" and _is_gelu(getattr(parent, "intermediate_act_fn", None))
                setattr(parent, name, PackedLinear(child, gelu=gelu))
                if gelu:
                    parent.intermediate_act_fn = nn.Identity()
                count += 1
    return count


def _is_gelu(activation: object) -> bool:
    return isinstance(activation, GELUActivation) and activation.act is F.gelu


def _ops() -> Any:
    return torch.ops.mkldnn


@functools.cache
def _scripted() -> Any:
    # GELU's variant "none": by erf, not by tanh
    return torch.jit.CompilationUnit("""
        def linear(x, w, b: Optional[Tensor]):
            return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
        def linear_gelu(x, w, b: Optional[Tensor]):
            return torch.ops.mkldnn._linear_pointwise(x, w, b, "gelu", [], "none")
    """)
