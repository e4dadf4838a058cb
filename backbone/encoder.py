"""The stock model and the way of a batch through it: rows and prompts in, hidden states out.

Owns the frozen model without its heads, how its inputs are made from packed rows, and which of its parts are replaced
on a CPU (attention, linear layers, the recorded graph). Knows nothing of pooling, heads or scores.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbone import attention, family
from backbone.attention import PackedBatch
from backbone.errors import UnsupportedBackbone
from backbone.graph import Inputs, RecordedModel
from backbone.linear import PackedLinear
from backbone.native import NativeAttention, NativeRows
from backbone.packing import PackedRows, pack
from backbone.prompts import DevicePrompt, gather
from backbone.rows import Row


class PackedEncoder:
    """A stock transformers model that runs rows packed in one line. `model` is the model without its heads."""

    def __init__(
        self,
        model: Any,
        embedding: nn.Embedding,
        *,
        layers: int,
        second_segment: int,
        device: torch.device,
        native: NativeAttention | None,
    ) -> None:
        """`second_segment` is what the tokenizer calls the second text's segment; `native` attends on CPUs."""
        self.model, self.embedding = model, embedding
        self._layers, self._device, self._native = layers, device, native
        accepts = frozenset(inspect.signature(model.forward).parameters)
        segments = getattr(model.config, "type_vocab_size", 0)
        self._has_segments = "token_type_ids" in accepts and segments > 0
        self._second_segment = second_segment if segments > 1 else 0
        self._fixed = {"use_cache": False} if "use_cache" in accepts else {}
        self.position_base = family.position_base(model)
        self.recorded: RecordedModel | None = None

    @property
    def replaced(self) -> tuple[str, ...]:
        """What is not left to the stock model where no gradient is asked for: of "attention", "linear", "graph"."""
        packed = any(isinstance(module, PackedLinear) for module in self.model.modules())
        return (
            ("attention",) * (self._native is not None)
            + ("linear",) * packed
            + ("graph",) * (self.recorded is not None)
        )

    def record(self, samples: Sequence[tuple[Sequence[Row], Sequence[DevicePrompt]]]) -> None:
        """Record the model on the first of these batches, compare on all of them, and use the recording from then on.

        Raises NotRecordable, and nothing has changed.
        """
        with torch.no_grad():
            inputs = [self._inputs(rows, prompts, None) for rows, prompts in samples]
        self.recorded = RecordedModel(self.model, self._fixed, inputs)

    def __call__(
        self,
        rows: Sequence[Row],
        prompts: Sequence[DevicePrompt],
        record: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, PackedRows]:
        """Hidden states [T, hidden] of all rows in one line, and where each row lies in it.

        To `record`, each layer adds the tokens' keys and values, [T, kv_heads, head_dim] each.

        Raises:
            UnsupportedBackbone: some layers do not attend by the registered function.

        """
        inputs, batch = self._inputs(rows, prompts, record)
        if self.recorded is not None and record is None and not torch.is_grad_enabled():
            hidden = self.recorded(inputs, batch)[0]
        else:
            hidden = self.model(**inputs, **self._fixed, **{attention.KEYWORD: batch})[0][0]
        if batch.calls != self._layers:
            # A model that attends in its own way would let rows see each other: no answer is better than that one.
            raise UnsupportedBackbone(
                f"{batch.calls} of {self._layers} layers attend by the registered function; "
                "this family does not let its attention be replaced, which packed rows need"
            )
        assert isinstance(batch.rows, PackedRows), "made by _inputs"
        return hidden, batch.rows

    def key_values(self, row: Row, prompt: DevicePrompt, _: str = "") -> tuple[Tensor, Tensor]:
        """Keys and values of a row's tokens in every layer, [layers, tokens, kv_heads, head_dim] each."""
        recorded: list[tuple[Tensor, Tensor]] = []
        self([row], [prompt], record=recorded)
        keys, values = zip(*recorded, strict=True)
        return torch.stack(keys), torch.stack(values)

    def _inputs(
        self,
        rows: Sequence[Row],
        prompts: Sequence[DevicePrompt],
        record: list[tuple[Tensor, Tensor]] | None,
    ) -> tuple[Inputs, PackedBatch]:
        shared = gather(prompts)
        packed = pack(
            rows,
            shared.soft_starts,
            shared.prefixes,
            [p.position_offset for p in prompts],
            position_base=self.position_base,
            second_segment=self._second_segment,
            device=self._device,
        )
        embedded = self.embedding(packed.token_ids)
        if shared.soft is not None:
            embedded = embedded.index_copy(
                0, packed.virtual_at, shared.soft.index_select(0, packed.virtual_from)
            )
        native = None
        if self._native is not None:
            addresses = [p.prefix_addresses for p in prompts]
            starts = [span.start for span in shared.prefixes]
            native = (self._native, NativeRows(list(map(len, rows)), addresses, starts))
        batch = PackedBatch(packed, shared.prefix_keys, shared.prefix_values, native, record)
        inputs = {"inputs_embeds": embedded.unsqueeze(0), "position_ids": packed.positions.unsqueeze(0)}
        if self._has_segments:
            inputs["token_type_ids"] = packed.segments.unsqueeze(0)
        return inputs, batch
