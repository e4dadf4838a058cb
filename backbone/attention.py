"""The one attention function of every architecture, for packed rows with prefixes.

Owns attention over `PackedRows`: each row sees its own tokens and its own prefix, nothing else. It is registered with
transformers under the name `packed`, and stock models hand it their queries, keys and values. Knows nothing of
prompts, templates or heads.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from backbone.errors import UnsupportedBackbone
from backbone.native import NativeAttention, NativeRows, Reach
from backbone.packing import CrossRows, Group, PackedRows
from backbone.relative import PER_ROW, RowBias

_jit: Any = torch.jit  # untyped
NAME = "packed"
KEYWORD = "packed_batch"

# Arguments that stock models pass and that change no score here; `sliding_window` is honoured, all others refused.
_HARMLESS = frozenset({
    "cache_position", "deterministic", "output_attentions", "output_hidden_states", "position_ids", "return_dict",
    "use_cache",
})  # fmt: skip


@dataclass(slots=True)
class PackedBatch:
    """What the attention function must know of a batch, passed through the model as one keyword argument.

    `prefix_keys[layer]` and `prefix_values[layer]` hold the prefixes of the batch's prompts, each
    [num_virtual_tokens, kv_heads, head_dim], in the order in which `PackedRows` numbers their tokens. `native` attends
    where it is there. To `record`, each layer adds the tokens' own keys and values, [T, kv_heads, head_dim]. `cross`
    is what a decoder's cross attention must know instead, and `bias` what T5 adds to its scores.
    """

    rows: PackedRows | CrossRows
    prefix_keys: Sequence[Sequence[Tensor]]
    prefix_values: Sequence[Sequence[Tensor]]
    native: tuple[NativeAttention, NativeRows] | None = None
    record: list[tuple[Tensor, Tensor]] | None = None
    calls: int = 0
    windowed: bool = False  # whether some layer handed over a window
    cross: PackedBatch | None = None
    bias: RowBias | None = None

    def next_layer(self, module: nn.Module) -> int:
        """The index of the layer that attends now; counted where a model does not number its layers (ALBERT)."""
        layer = getattr(module, "layer_idx", None)
        layer = self.calls if layer is None else int(layer)
        self.calls += 1
        return layer

    def prefixes_of(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all prefixes in a layer, [prefix tokens, kv_heads, head_dim]; none are `like` a key."""
        if not self.prefix_keys:
            nothing = like.new_empty(0, like.shape[1], like.shape[3])
            return nothing, nothing
        return torch.cat(tuple(self.prefix_keys[layer])), torch.cat(tuple(self.prefix_values[layer]))

    def learns(self, layer: int, *states: Tensor) -> bool:
        """Whether a gradient is asked of this layer's attention."""
        if not torch.is_grad_enabled():
            return False
        prefixes = (self.prefix_keys[layer], self.prefix_values[layer]) if self.prefix_keys else ()
        return any(t.requires_grad for t in (*states, *itertools.chain(*prefixes)))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend each packed row to itself and to its prefix.

    Shapes: query [1, heads, T, head_dim]; key, value [1, kv_heads, T, head_dim]; returns [1, T, heads, head_dim].
    The window counts as transformers counts it: a key at distance d is seen when |d| < `sliding_window`; prefix
    tokens are always seen.

    Raises:
        UnsupportedBackbone: the model passes something that would change scores and is not known here.

    """
    batch: PackedBatch | None = kwargs.pop(KEYWORD, None)
    if batch is not None and batch.cross is not None and not getattr(module, "is_causal", False):
        batch = batch.cross  # of a decoder's two attentions the one that looks at the encoder
    if kwargs.get("position_bias") is PER_ROW:
        del kwargs["position_bias"]
    unknown = sorted(name for name, v in kwargs.items() if name not in _HARMLESS and v is not None)
    if batch is None or unknown or attention_mask is not None:
        what = ", ".join(unknown) or ("a mask" if batch is not None else "no packed batch")
        raise UnsupportedBackbone(
            f"{type(module).__name__} hands its attention {what}: packed rows cannot honour it"
        )
    if dropout:
        raise UnsupportedBackbone("the backbone is frozen: attention dropout must be 0")
    layer = batch.next_layer(module)
    batch.windowed |= sliding_window is not None
    causal = bool(getattr(module, "is_causal", False))
    reach = Reach(causal, sliding_window, scaling)
    if _jit.is_tracing():
        arguments = (query, key, value, layer, reach.causal, reach.window, reach.scaling)
        calls = batch.calls
        attended: Tensor = torch.ops.promptmux.attend(*arguments)
        batch.calls = calls  # the operator has counted as well
        return attended, None
    return _attend_batch(batch, query, key, value, layer, reach), None


def _attend_batch(
    batch: PackedBatch, query: Tensor, key: Tensor, value: Tensor, layer: int, reach: Reach
) -> Tensor:
    learning = batch.learns(layer, query, key, value)
    if batch.record is not None:
        # [1, kv_heads, T, head_dim] → [T, kv_heads, head_dim]
        batch.record.append((key[0].transpose(0, 1), value[0].transpose(0, 1)))
    if batch.native is not None:
        native, rows = batch.native
        if not learning:
            return native(query, key, value, rows, layer, reach)
        return native.learn(query, key, value, *batch.prefixes_of(layer, key), rows, reach)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, heads, head_dim]
    if batch.prefix_keys:
        k = torch.cat([*batch.prefix_keys[layer], k])
        v = torch.cat([*batch.prefix_values[layer], v])
    repeat = q.shape[1] // k.shape[1]
    attend = _attend if learning and q.device.type == "cpu" else _fused
    outputs = []
    for group in batch.rows.groups:
        for queries, keys, mask in _parts(batch, group, reach, q.dtype):
            attended = attend(
                _gather(q, queries), _gather(k, keys, repeat), _gather(v, keys, repeat), mask, reach.scaling
            )
            outputs.append(attended.transpose(1, 2).reshape(-1, *q.shape[1:]))
    padded = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return padded.index_select(0, batch.rows.unpad).unsqueeze(0)


def _parts(
    batch: PackedBatch, group: Group, reach: Reach, dtype: torch.dtype
) -> Iterable[tuple[Tensor, Tensor, Tensor | None]]:
    """Queries, keys and mask of a group; with a bias, of some of its rows at a time."""
    mask = group.mask(causal=reach.causal, window=reach.window, dtype=dtype)
    return ((group.queries, group.keys, mask),) if batch.bias is None else batch.bias.parts(group, mask)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention as written in the paper (Vaswani et al. 2017, eq. 1), for the backward on CPUs.

    The backward of torch's fused CPU kernel took nine times its forward on rows of a sentence's length; these four
    operators together take about three times.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scale) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ value


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def _gather(states: Tensor, index: Tensor, repeat: int = 1) -> Tensor:
    """[S, heads, head_dim] and [R, L] → [R, heads · repeat, L, head_dim]."""
    picked = states.index_select(0, index.reshape(-1)).view(*index.shape, *states.shape[1:]).transpose(1, 2)
    return picked if repeat == 1 else picked.repeat_interleave(repeat, dim=1)


# A recorded model (`backbone.graph`) has no place for a keyword of ours: it finds its batch by the thread it runs on.
_current = threading.local()
_operators: Any = torch.library.Library("promptmux", "DEF")  # type: ignore[no-untyped-call]
_operators.define(
    "attend(Tensor query, Tensor key, Tensor value, int layer, bool causal, int? window, float? scaling) -> Tensor"
)


@contextmanager
def attending(batch: PackedBatch) -> Iterator[None]:
    """Let a recorded model on this thread attend over this batch until the block ends."""
    _current.batch = batch
    try:
        yield
    finally:
        del _current.batch


def current() -> PackedBatch:
    """The batch that a recorded model on this thread attends over. Raises AttributeError if there is none."""
    batch: PackedBatch = _current.batch
    return batch


def _attend_current(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    causal: bool,  # the operator's schema
    window: int | None,
    scaling: float | None,
) -> Tensor:
    batch = current()
    batch.calls += 1
    return _attend_batch(batch, query, key, value, layer, Reach(causal, window, scaling))


_operators.impl("attend", _attend_current, "CompositeExplicitAutograd")


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed rows need no mask from the model: the attention function knows where each row ends."""


def register() -> None:
    """Make `packed` known to transformers (again is harmless)."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
