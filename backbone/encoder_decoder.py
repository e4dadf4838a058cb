"""An encoder-decoder and the way of a batch through it: rows and prompts in, hidden states out.

Owns T5's and BART's two stacks, what each of them is handed, and how positions reach packed rows: BART's are looked up
here, since its stacks count places of the whole line; T5's bias is made row by row (`backbone.relative`). It stands
where `backbone.encoder` stands for all other families. Knows nothing of heads or scores.

The encoder reads all rows in one line. The rows whose prompts say what the decoder reads are a second line; its own
attention keeps them apart, and its cross attention shows each the encoder's states of its own row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backbone import attention
from backbone.attention import PackedBatch
from backbone.decoder_input import DecoderStart
from backbone.encoder import PackedEncoder
from backbone.errors import UnsupportedBackbone
from backbone.family import attends_by_interface, is_encoder_decoder
from backbone.graph import NotRecordable
from backbone.linear import PackedLinear
from backbone.native import NativeAttention
from backbone.packing import PackedRows, PrefixSpan, pack, pack_cross, to_device
from backbone.padded import PaddedEncoder
from backbone.prompts import NO_PREFIX, DevicePrompt, StackPrefix, gather
from backbone.relative import RelativeBias, RowBias
from backbone.rows import Row
from prompt_store import BackboneRef

STACKS = ("encoder", "decoder", "cross")
Recorded = list[tuple[Tensor, Tensor]]


class PackedEncoderDecoder:
    """A stock T5 or BART that runs rows packed in one line. `model` is the model without its heads, if it can be."""

    position_base = 0
    recorded = None

    def __init__(self, model: Any, *, device: torch.device) -> None:
        self.model, self._device = model, device
        self.embedding: nn.Embedding = model.get_input_embeddings()
        self._encoder, self._decoder = _Stack(model.encoder), _Stack(model.decoder)

    @property
    def replaced(self) -> tuple[str, ...]:
        """What is not left to the stock model where no gradient is asked for: "linear", or nothing."""
        packed = any(isinstance(module, PackedLinear) for module in self.model.modules())
        return ("linear",) * packed

    def record(self, samples: object) -> None:
        """Raise NotRecordable: two stacks that share a batch run through Python."""
        raise NotRecordable("an encoder-decoder is not recorded")

    def __call__(self, rows: Sequence[Row], prompts: Sequence[DevicePrompt]) -> tuple[Tensor, PackedRows]:
        """Hidden states [T, hidden] in one line, and where each row's pooled places lie in it.

        They are the encoder's where no row reads the decoder, the decoder's where all do, else one after the other.

        Raises:
            UnsupportedBackbone: some layers do not attend by the registered function.

        """
        encoded, packed = self._encode(rows, prompts, None)
        reading = [at for at, row in enumerate(rows) if row.decoder]
        if not reading:
            return encoded, packed
        decoded, own = self._decode(rows, prompts, reading, encoded, None, None)
        if len(reading) == len(rows):
            return decoded, own
        return torch.cat([encoded, decoded]), self._pool_both(rows, packed)

    def key_values(self, row: Row, prompt: DevicePrompt, stack: str = "encoder") -> tuple[Tensor, Tensor]:
        """Keys and values of a row's tokens in every layer of a stack, [layers, tokens, kv_heads, head_dim] each.

        The decoder is given the row's own tokens, and its cross attention has those of the encoder's states.
        """
        of_encoder, of_decoder, of_cross = Recorded(), Recorded(), Recorded()
        encoded, _ = self._encode([row], [prompt], of_encoder)
        if stack != "encoder":
            reading = replace(row, decoder=tuple(i for i in row.token_ids if i >= 0))
            self._decode([reading], [prompt], [0], encoded, of_decoder, of_cross)
        recorded = {"encoder": of_encoder, "decoder": of_decoder, "cross": of_cross}[stack]
        keys, values = zip(*recorded, strict=True)
        return torch.stack(keys), torch.stack(values)

    def _encode(
        self, rows: Sequence[Row], prompts: Sequence[DevicePrompt], record: Recorded | None
    ) -> tuple[Tensor, PackedRows]:
        shared = gather(prompts)
        offsets = [p.position_offset for p in prompts]
        packed = pack(
            rows, shared.soft_starts, shared.prefixes, offsets, position_base=0, second_segment=0,
            device=self._device,
        )  # fmt: skip
        embedded = self._encoder.embed(packed.token_ids)
        if shared.soft is not None:
            embedded = embedded.index_copy(
                0, packed.virtual_at, shared.soft.index_select(0, packed.virtual_from)
            )
        batch = PackedBatch(packed, shared.prefix_keys, shared.prefix_values, None, record)
        batch.bias = self._encoder.bias(packed, rows, offsets, [None] * _tokens(shared.prefixes))
        return self._encoder(embedded, packed, batch), packed

    def _decode(
        self,
        rows: Sequence[Row],
        prompts: Sequence[DevicePrompt],
        reading: Sequence[int],
        encoded: Tensor,
        record: Recorded | None,
        record_cross: Recorded | None,
    ) -> tuple[Tensor, PackedRows]:
        """States of the rows `reading`, in that order."""
        own = [_decoder_row(rows[at]) for at in reading]
        parts = [prompts[at].decoder for at in reading]
        offsets = [0 if part is None else part.position_offset for part in parts]
        mine = _gather([NO_PREFIX if part is None else part.own for part in parts])
        crossing = _gather([NO_PREFIX if part is None else part.cross for part in parts])
        packed = pack(
            own, [0] * len(own), mine.spans, offsets, position_base=0, second_segment=0, device=self._device
        )
        seen = pack_cross(
            list(map(len, own)), list(map(len, rows)), reading, crossing.spans, device=self._device
        )
        batch = PackedBatch(packed, mine.keys, mine.values, None, record)
        batch.cross = PackedBatch(seen, crossing.keys, crossing.values, None, record_cross)
        batch.bias = self._decoder.bias(packed, own, offsets, _places(mine.spans, offsets))
        embedded = self._decoder.embed(packed.token_ids)
        return self._decoder(embedded, packed, batch, encoder_hidden_states=encoded.unsqueeze(0)), packed

    def _pool_both(self, rows: Sequence[Row], packed: PackedRows) -> PackedRows:
        """Pooled places of all rows where the decoder's line follows the encoder's."""
        lengths = np.array([len(row) for row in rows])
        reading = np.array([len(row.decoder) for row in rows])
        starts = np.where(
            reading > 0, lengths.sum() + np.cumsum(reading) - reading, np.cumsum(lengths) - lengths
        )
        places = [
            starts[at] + place for at, row in enumerate(rows) for a, b in row.spans for place in range(a, b)
        ]
        return replace(packed, pool_at=to_device([np.array(places, dtype=np.int64)], self._device)[0])


class _Stack:
    """One stack of the model: its layers, and how its tokens get positions."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.layers = len(module.block if hasattr(module, "block") else module.layers)
        self._table: Any = getattr(module, "embed_positions", None)
        if self._table is not None:
            module.embed_positions = _AddedBefore(self._table)
        self._relative = RelativeBias(module) if self._table is None else None

    def embed(self, token_ids: Tensor) -> Tensor:
        """[T] → [T, width], with the stack's own scale."""
        embedded: Tensor = self._module.embed_tokens(token_ids)
        return embedded

    def bias(
        self, packed: PackedRows, rows: Sequence[Row], offsets: Sequence[int], places: Sequence[int | None]
    ) -> RowBias | None:
        """The relative bias of a batch; `places` has the position of each of its prefix tokens, or None."""
        if self._relative is None:
            return None
        known = [place is not None for place in places]
        furthest = max(len(row) + offset for row, offset in zip(rows, offsets, strict=True))
        # Only towards longer distances: other rows of the batch are still as long as they are.
        furthest -= min([0, *(place for place in places if place is not None)])
        values = [np.array(given, dtype=np.int64) for given in ([place or 0 for place in places], known)]
        ahead, placed = to_device(values, packed.positions.device)
        return RowBias(
            by_distance=self._relative.by_distance(furthest),
            furthest=furthest,
            queries=packed.positions,
            keys=torch.cat([ahead, packed.positions]),
            placed=torch.cat([placed, torch.ones_like(packed.positions)]).bool(),
        )

    def __call__(self, embedded: Tensor, packed: PackedRows, batch: PackedBatch, **more: Tensor) -> Tensor:
        """Hidden states [T, hidden] of the line whose tokens are `embedded`."""
        if self._table is not None:
            # Not the table's own forward: that one counts places of the line where it is not told better.
            embedded = embedded + nn.Embedding.forward(self._table, packed.positions + self._table.offset)
        given = {**more, attention.KEYWORD: batch}
        hidden: Tensor = self._module(inputs_embeds=embedded.unsqueeze(0), use_cache=False, **given)[0][0]
        calls = [batch.calls] if batch.cross is None else [batch.calls, batch.cross.calls]
        if set(calls) != {self.layers}:
            raise UnsupportedBackbone(
                f"{calls} of {self.layers} layers attend by the registered function; "
                "this family does not let its attention be replaced, which packed rows need"
            )
        return hidden


class _AddedBefore(nn.Module):
    """Stands for a stack's table of positions, which is added to the embeddings before the stack is run."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table  # still one of the model's parameters
        self.register_buffer("_nothing", torch.zeros(1, 1, 1), persistent=False)
        self._nothing: Tensor

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """What is added to the embeddings here: nothing."""
        weight: Any = self.table.weight
        return self._nothing.to(weight)


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """The prefixes of a stack's rows, each distinct one once."""

    spans: list[PrefixSpan]
    keys: list[tuple[Tensor, ...]]
    values: list[tuple[Tensor, ...]]


def _gather(prefixes: Sequence[StackPrefix]) -> _Prefixes:
    distinct = list({id(prefix): prefix for prefix in prefixes}.values())
    starts, at = {}, 0
    for prefix in distinct:
        starts[id(prefix)] = at
        at += prefix.length
    there = [prefix for prefix in distinct if prefix.length]
    return _Prefixes(
        [PrefixSpan(starts[id(prefix)], prefix.length) for prefix in prefixes],
        list(zip(*(prefix.keys for prefix in there), strict=True)),
        list(zip(*(prefix.values for prefix in there), strict=True)),
    )


def _tokens(spans: Sequence[PrefixSpan]) -> int:
    return max((span.start + span.length for span in spans), default=0)


def _places(spans: Sequence[PrefixSpan], offsets: Sequence[int]) -> list[int | None]:
    """The position of each prefix token: right before its prompt's first token, or none where that one is at 0."""
    places: list[int | None] = [None] * _tokens(spans)
    for span, offset in zip(spans, offsets, strict=True):
        if offset:
            places[span.start : span.start + span.length] = range(offset - span.length, offset)
    return places


def _decoder_row(row: Row) -> Row:
    count = len(row.decoder)
    return Row(row.decoder, lead=0, second=count, spans=row.spans, num_prompt_tokens=count)


def decoder_start(config: Any) -> DecoderStart | None:
    """How the decoder of an encoder-decoder begins; None: the model is none."""
    if not is_encoder_decoder(config):
        return None
    start = getattr(config, "decoder_start_token_id", None)
    cloze: Literal["mask", "copy"] = "copy" if config.model_type.endswith("bart") else "mask"
    return DecoderStart(start, cloze, wraps=config.model_type == "mbart")


def packed_model(
    base: Any,
    shape: BackboneRef,
    second_segment: int,
    *,
    device: torch.device,
    native: NativeAttention | None,
) -> PackedEncoder | PackedEncoderDecoder:
    """What runs packed rows through this model; `native` where it can attend on this device to such states."""
    if is_encoder_decoder(base.config):
        return PackedEncoderDecoder(base, device=device)
    embedding: nn.Embedding = base.get_input_embeddings()
    way = PackedEncoder if attends_by_interface(base) else PaddedEncoder
    fits = way is PackedEncoder and native is not None and device.type == "cpu"
    fits = fits and native is not None and native.takes(embedding.weight.dtype, shape.head_dim)
    return way(
        base,
        embedding,
        layers=shape.layers,
        second_segment=second_segment,
        device=device,
        native=native if fits else None,
    )
