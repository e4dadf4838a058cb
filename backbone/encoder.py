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
from backbone.native import NativeAttention, NativeRows, PrefixAddresses
from backbone.packing import PackedRows, PrefixSpan, pack
from backbone.prompts import DevicePrompt, gather
from backbone.rows import Row

# What AMX multiplies at once of a line's tokens in bfloat16; lines are of so many, at least.
_TILE = 16
# A row of one token that nobody reads.
_FILLER = Row((0,), lead=0, second=1, spans=(), num_prompt_tokens=0)


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
        self._windowed = family.has_window(model.config)
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
            if self._windowed and not batch.windowed:
                raise UnsupportedBackbone(
                    f"{self.model.config.model_type} gives its window to the mask alone, which packed rows do without: "
                    "only families that hand it to their attention are served"
                )
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
        filler = 0 if record is not None else self._filler(sum(map(len, rows)))
        prefixes = [*shared.prefixes, *[PrefixSpan(0, 0)] * filler]
        packed = pack(
            [*rows, *[_FILLER] * filler],
            [*shared.soft_starts, *[0] * filler],
            prefixes,
            [*(p.position_offset for p in prompts), *[0] * filler],
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
            addresses = [*(p.prefix_addresses for p in prompts), *[PrefixAddresses()] * filler]
            lengths = [*map(len, rows), *[1] * filler]
            native = (self._native, NativeRows(lengths, addresses, [span.start for span in prefixes]))
        if filler:
            packed.num_rows, packed.pool_count = len(rows), packed.pool_count[: len(rows)]
        batch = PackedBatch(packed, shared.prefix_keys, shared.prefix_values, native, record)
        inputs = {"inputs_embeds": embedded.unsqueeze(0), "position_ids": packed.positions.unsqueeze(0)}
        if self._has_segments:
            inputs["token_type_ids"] = packed.segments.unsqueeze(0)
        return inputs, batch

    def _filler(self, tokens: int) -> int:
        """How many tokens a line of so many is filled up with."""
        half = self.embedding.weight.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu")
        return spare(tokens) if half and self._device.type == "cpu" else 0


def spare(tokens: int) -> int:
    """How many tokens a line lacks to be of one of few lengths: 16 at least, at most 1/16 apart above 256.

    oneDNN writes the machine code of a bfloat16 product anew for each length of a line, and keeps a thousand of them:
    a line of a new length took a model of six layers longer for that than for its products.
    """
    return -tokens % max(_TILE, 1 << max(0, tokens.bit_length() - 5))
