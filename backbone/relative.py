"""T5's relative positions for rows packed in one line.

Owns the bias that T5 adds to its scores by the distance of two tokens, made for each group of rows when it attends: the
stock model would make it for the whole line, [1, heads, T, T]. Knows nothing of prompts or of what rows mean.

Raffel et al. 2020 (arXiv 1910.10683), section 2.1: one learned scalar for each head and bucket of distances, shared by
all layers of a stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.errors import UnsupportedBackbone
from backbone.packing import Group

# What the stock layers hand around in the place of their own bias.
PER_ROW: Final = object()
# A group's bias of up to this many numbers is kept for the other layers; a larger one is made again in each, for so
# many rows at a time that it stays below this (one row is the least).
_MOST = 1 << 22


class RelativeBias:
    """The learned bias of one stack."""

    def __init__(self, stack: nn.Module) -> None:
        """Take the stack's table, and keep its layers from making a bias of their own."""
        layers: list[Any] = [m for m in stack.modules() if hasattr(m, "has_relative_attention_bias")]
        if not layers or not hasattr(layers[0], "is_causal"):
            raise UnsupportedBackbone(
                "this version of transformers does not let T5's attention be replaced: install a newer one"
            )
        self._first = next(layer for layer in layers if layer.has_relative_attention_bias)
        for layer in layers:
            layer.register_forward_pre_hook(_keep_from_making, with_kwargs=True)

    def by_distance(self, furthest: int) -> Tensor:
        """[heads, 2 · furthest + 2]: for key minus query from −furthest to furthest, and last 0, for no distance."""
        first = self._first
        weight: Tensor = first.relative_attention_bias.weight
        buckets = first._relative_position_bucket(
            torch.arange(-furthest, furthest + 1, device=weight.device),
            bidirectional=not first.is_decoder,
            num_buckets=first.relative_attention_num_buckets,
            max_distance=first.relative_attention_max_distance,
        )
        return F.pad(first.relative_attention_bias(buckets).T, (0, 1))


def _keep_from_making(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"position_bias": PER_ROW}


@dataclass(slots=True)
class RowBias:
    """The bias of one batch in one stack.

    `queries` [T] and `keys` [prefix tokens + T] are positions of the packed line; `placed` says which keys have one.
    """

    by_distance: Tensor
    furthest: int
    queries: Tensor
    keys: Tensor
    placed: Tensor
    _kept: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    def parts(self, group: Group, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of a group's rows, some at a time: their queries, their keys, and what is added to their scores."""
        if id(group) in self._kept:
            yield from self._kept[id(group)]
            return
        heads = self.by_distance.shape[0]
        rows, longest = group.queries.shape
        each = heads * longest * group.keys.shape[1]
        if rows * each <= _MOST:
            self._kept[id(group)] = [self._part(group, slice(None), mask)]
            yield from self._kept[id(group)]
            return
        step = max(1, _MOST // each)
        for begin in range(0, rows, step):
            yield self._part(group, slice(begin, begin + step), mask)

    def _part(self, group: Group, rows: slice, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys = group.queries[rows], group.keys[rows]
        distance = self.keys[keys].unsqueeze(1) - self.queries[queries].unsqueeze(2)  # [R, Lq, Lk]
        index = torch.where(self.placed[keys].unsqueeze(1), distance + self.furthest, 2 * self.furthest + 1)
        bias = self.by_distance[:, index].transpose(0, 1)  # [R, heads, Lq, Lk]
        return queries, keys, bias if mask is None else bias + mask[rows]
