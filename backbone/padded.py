"""Encoders that attend in their own way, in padded batches of rows of like length.

Owns the way of a batch through a model whose attention cannot be replaced (DeBERTa-v2's disentangled attention, MPNet's
relative positions): the line is cut into groups of rows, each group goes through the stock model as a batch of its own
with an attention mask, and the states go back to their places in the line. Knows nothing of pooling, heads or scores.

A padded place repeats the last token of its own row, so that nothing of a neighbour is in a row at any time. What the
mask must do is keep a row from seeing its own last token twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backbone.encoder import PackedEncoder
from backbone.errors import UnsupportedBackbone
from backbone.family import without_prefixes
from backbone.graph import NotRecordable
from backbone.packing import PackedRows
from backbone.prompts import DevicePrompt
from backbone.rows import Row


class PaddedEncoder(PackedEncoder):
    """A stock encoder that runs groups of rows, each padded to its longest. It takes no prefixes."""

    def __call__(
        self,
        rows: Sequence[Row],
        prompts: Sequence[DevicePrompt],
        record: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, PackedRows]:
        """Hidden states [T, hidden] of all rows in one line, and where each row lies in it.

        Raises:
            UnsupportedBackbone: keys and values are to be recorded, which only a replaced attention can do.

        """
        if record is not None:
            raise UnsupportedBackbone(without_prefixes("this backbone", self.model.config.model_type))
        line, batch = self._inputs(rows, prompts, None)
        assert isinstance(batch.rows, PackedRows), "made by _inputs"
        states = []
        for group in batch.rows.groups:
            index = group.queries.reshape(-1)
            # [1, T, …] → [R, L, …]
            inputs = {
                name: given[0].index_select(0, index).view(*group.queries.shape, *given.shape[2:])
                for name, given in line.items()
            }
            hidden = self.model(**inputs, attention_mask=group.real(), **self._fixed)[0]
            states.append(hidden.flatten(0, 1))
        padded = states[0] if len(states) == 1 else torch.cat(states)
        return padded.index_select(0, batch.rows.unpad), batch.rows

    def record(self, samples: Sequence[tuple[Sequence[Row], Sequence[DevicePrompt]]]) -> None:
        """Raise NotRecordable: a graph holds one batch, and here are as many as there are groups."""
        raise NotRecordable(f"{self.model.config.model_type} runs in padded batches")

    def _filler(self, tokens: int) -> int:
        """None: it is the groups' lengths that count here, not the line's."""
        return 0
