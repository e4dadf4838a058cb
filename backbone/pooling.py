"""From hidden states to one vector a row.

Owns averaging over the places that a prompt pools, and the stock model's trained pooler. Knows nothing of heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from backbone.heads import at_least_float32
from backbone.packing import PackedRows

Pooler = Callable[[Tensor], Tensor]


def pool(hidden: Tensor, rows: PackedRows, asking: Sequence[bool], pooler: Pooler | None) -> Tensor:
    """Average the pooled places of each row: [T, hidden] → [R, hidden], float32 at least; rows that are `asking` go
    through the `pooler` as well, which must be there for them.
    """
    picked = at_least_float32(hidden.index_select(0, rows.pool_at))
    total = picked.new_zeros(rows.num_rows, hidden.shape[1]).index_add(0, rows.pool_row, picked)
    pooled = total / rows.pool_count.unsqueeze(1)
    wanted = [row for row, asks in enumerate(asking) if asks]
    if not wanted:
        return pooled
    assert pooler is not None, "bind() refuses pooler prompts on a backbone without one"
    index = torch.tensor(wanted, device=hidden.device)
    states = pooler(pooled.index_select(0, index).to(hidden.dtype))
    return pooled.index_copy(0, index, states.to(pooled.dtype))


def split_pooler(base: Any, *, trained: bool) -> Pooler | None:
    """Take the pooler out of a stock model, which would run it on the packed line's first token.

    Returns it as a function of the rows' first states [n, hidden]; None when the model has none, or one whose
    weights the checkpoint did not bring (`trained` is false).
    """
    stock, activation = getattr(base, "pooler", None), getattr(base, "pooler_activation", None)
    if stock is None:
        return None
    base.pooler = None
    if activation is not None:  # ALBERT's pooler is two modules, a Linear and its activation
        base.pooler_activation = None
    if not trained:
        return None

    def pooler(states: Tensor) -> Tensor:
        if activation is not None:
            return torch.as_tensor(activation(stock(states)))
        return torch.as_tensor(stock(states.unsqueeze(1)))

    return pooler
