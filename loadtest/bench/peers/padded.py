"""The stock model on padded batches with mean pooling and one linear head: what peers run or export.

Needs torch and transformers, nothing of the project.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Padded(nn.Module):
    """Token ids in, pooled states [rows, hidden] and two logits out."""

    def __init__(self, folder: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> None:
        """`attention` is transformers' name of an implementation; exporters know some better than others."""
        from transformers import AutoModel

        super().__init__()
        self.base: Any = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        # The checkpoint's pooler would be computed at every call, and nobody reads it.
        if getattr(self.base, "pooler", None) is not None:
            self.base.pooler = None
        self.head = nn.Linear(self.base.config.hidden_size, 2).to(dtype)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Score padded rows."""
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.scores(hidden, text_mask)

    def scores(self, hidden: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over the places that are text, and the head."""
        pooled = mean(hidden, text_mask)
        return pooled, self.head(pooled)


def mean(hidden: Tensor, text_mask: Tensor) -> Tensor:
    """Average [rows, places, hidden] over the places that are text."""
    weights = text_mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)
