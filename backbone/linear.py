"""Linear layers with their weights laid out once for the processor, and their GELU in the same pass.

Owns the replacement of a stock model's linear layers on CPUs in bfloat16. oneDNN multiplies by a weight in a layout of
its own and makes that layout anew at every call unless it is kept; it can also apply GELU while the products are still
in registers. Both are inference only: where a gradient is asked for, the layer is the stock one. Knows nothing of rows.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

_jit: Any = torch.jit  # untyped


class PackedLinear(nn.Module):
    """`nn.Linear` of a frozen weight, with GELU behind it if asked for. Keeps the stock weight for gradients."""

    def __init__(self, stock: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self._packed: Tensor
        self.weight, self.bias, self.gelu = stock.weight, stock.bias, gelu
        self.in_features, self.out_features = stock.in_features, stock.out_features
        with torch.no_grad():
            packed: Tensor = _ops()._reorder_linear_weight(stock.weight.data, None)
        # A buffer, so that a recorded model refers to it; the state that is saved stays the stock model's.
        self.register_buffer("_packed", packed, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] → [..., out_features]."""
        if torch.is_grad_enabled() and (states.requires_grad or self.weight.requires_grad):
            result = F.linear(states, self.weight, self.bias)
            return F.gelu(result) if self.gelu else result
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
