"""Rows of any kind packed in one line, and the index maps that the forward needs.

Owns how a batch lies in memory: where each row's tokens, positions, virtual tokens and pooled places are, and the
groups of rows of like length in which attention runs. All maps are computed once per batch, on the host, and copied
to the device together. Knows nothing of models or heads.

A padded place in a group always repeats a token of its own row. A neighbour's values, NaN included, can therefore
reach no other row: not even through a weight of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from backbone.rows import Row

# A group may hold rows of up to this many times the length of its shortest row (plus a few tokens): more groups mean
# more kernel calls, fewer mean more padding inside attention.
_GROUP_RATIO, _GROUP_SLACK = 1.25, 4


@dataclass(frozen=True, slots=True)
class PrefixSpan:
    """Where a row's prefix lies among the batch's prefix tokens: `[start, start + length)`."""

    start: int
    length: int


@dataclass(slots=True)
class Group:
    """Rows that attend together, padded to the longest of them.

    queries [R, Lq] indexes the packed line; keys [R, Lk] indexes the batch's prefix tokens followed by the packed
    line. Masks are built on first use for each (causal, window) and kept for the other layers.
    """

    queries: Tensor
    keys: Tensor
    lengths: np.ndarray  # [R] tokens of the line that each row sees: its own
    prefixes: np.ndarray  # [R] prefix tokens per row
    _masks: dict[tuple[bool, int | None], Tensor | None] = field(default_factory=dict)

    def real(self) -> Tensor:
        """1 where a query is a token, 0 where it repeats one: [R, Lq], int64."""
        places = np.arange(self.queries.shape[1])[None, :] < self.lengths[:, None]
        return to_device([places.astype(np.int64)], self.queries.device)[0]

    def mask(self, *, causal: bool, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [R, 1, 1 or Lq, Lk], or None where every key is visible to every query."""
        longest = int(self.lengths.max())
        if window is not None and window >= longest:
            window = None
        if longest == 1:
            causal = False
        if (causal, window) not in self._masks:
            self._masks[causal, window] = self._build(causal, window, dtype)
        return self._masks[causal, window]

    def _build(self, causal: bool, window: int | None, dtype: torch.dtype) -> Tensor | None:
        columns = np.arange(self.keys.shape[1])[None, None, :]
        prefix = self.prefixes[:, None, None]
        visible = columns < prefix + self.lengths[:, None, None]
        if causal or window is not None:
            # A padded query repeats its row's last token and sees what that token sees: a query that saw nothing
            # would be NaN, and its gradient would reach its row's keys.
            place = np.minimum(
                np.arange(self.queries.shape[1])[None, :, None], self.lengths[:, None, None] - 1
            )
            distance = place - (columns - prefix)
            near = distance >= 0 if causal else np.ones_like(distance, dtype=bool)
            if window is not None:
                near &= np.abs(distance) < window
            visible = visible & (near | (columns < prefix))
        if visible.all():
            return None
        mask = torch.zeros(visible.shape, dtype=dtype)
        mask.masked_fill_(torch.from_numpy(~visible), float("-inf"))
        return mask.unsqueeze(1).to(self.queries.device)


@dataclass(slots=True)
class PackedRows:
    """One batch in one line of T tokens. Tensors are on the device."""

    token_ids: Tensor  # [T]; 0 where a virtual token stands
    positions: Tensor  # [T]
    segments: Tensor  # [T]
    virtual_at: Tensor  # [V] places of virtual tokens in the line
    virtual_from: Tensor  # [V] their places among the batch's soft-prompt vectors
    pool_at: Tensor  # [N] places that are pooled
    pool_row: Tensor  # [N] the rows they belong to
    pool_count: Tensor  # [R] how many places each row averages
    num_rows: int
    _grouped: Callable[[], tuple[tuple[Group, ...], Tensor]]
    _groups: tuple[tuple[Group, ...], Tensor] | None = field(default=None, init=False)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The rows in groups of like length; made when asked for, since not every attention wants them."""
        return self._made()[0]

    @property
    def unpad(self) -> Tensor:
        """[T] where each token of the line stands in the groups' padded outputs, one after another."""
        return self._made()[1]

    def _made(self) -> tuple[tuple[Group, ...], Tensor]:
        if self._groups is None:
            self._groups = self._grouped()
        return self._groups


@dataclass(frozen=True, slots=True)
class CrossRows:
    """The rows of a decoder's line in groups, each with the keys of its own row in the encoder's line."""

    groups: tuple[Group, ...]
    unpad: Tensor  # [T] as `PackedRows.unpad`, of the decoder's line


def pack(
    rows: Sequence[Row],
    soft_starts: Sequence[int],
    prefixes: Sequence[PrefixSpan],
    offsets: Sequence[int],
    *,
    position_base: int,
    second_segment: int,
    device: torch.device,
) -> PackedRows:
    """Lay rows out in one line.

    For each row, `soft_starts` is where its soft prompt begins among the batch's soft-prompt vectors, `prefixes` where
    its prefix lies, `offsets` its prompt's `position_offset`.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    ids = np.fromiter((i for row in rows for i in row.token_ids), dtype=np.int64, count=int(lengths.sum()))
    row_of = np.repeat(np.arange(len(rows)), lengths)
    place = np.arange(len(ids)) - starts[row_of]

    lead = np.array([row.lead for row in rows], dtype=np.int64)[row_of]
    offset = np.array(offsets, dtype=np.int64)[row_of]
    positions = position_base + np.where(place < lead, place, place - lead + offset)
    second = np.array([row.second for row in rows], dtype=np.int64)[row_of]
    virtual = ids < 0
    segments = np.where((place >= second) & ~virtual, second_segment, 0)
    virtual_at = np.flatnonzero(virtual)
    virtual_from = np.array(soft_starts, dtype=np.int64)[row_of[virtual_at]] + ~ids[virtual_at]

    spans = [(row, at) for row, r in enumerate(rows) for a, b in r.spans for at in range(a, b)]
    pool_row = np.array([row for row, _ in spans], dtype=np.int64)
    pool_at = starts[pool_row] + np.array([at for _, at in spans], dtype=np.int64)
    pool_count = np.bincount(pool_row, minlength=len(rows))

    names = {
        "token_ids": np.where(virtual, 0, ids),
        "positions": positions,
        "segments": segments,
        "virtual_at": virtual_at,
        "virtual_from": virtual_from,
        "pool_at": pool_at,
        "pool_row": pool_row,
        "pool_count": pool_count,
    }
    moved = dict(zip(names, to_device(list(names.values()), device), strict=True))
    own = (lengths, starts)
    return PackedRows(**moved, num_rows=len(rows), _grouped=lambda: _group(own, own, prefixes, device))


def pack_cross(
    rows: Sequence[int],
    encoded: Sequence[int],
    members: Sequence[int],
    prefixes: Sequence[PrefixSpan],
    *,
    device: torch.device,
) -> CrossRows:
    """Let decoder row i, of `rows[i]` tokens, look at row `members[i]` of the `encoded` lengths, and at its prefix."""
    lengths, whole = np.array(rows, dtype=np.int64), np.array(encoded, dtype=np.int64)
    starts, chosen = np.cumsum(whole) - whole, np.array(members, dtype=np.int64)
    keys = (whole[chosen], starts[chosen])
    return CrossRows(*_group((lengths, np.cumsum(lengths) - lengths), keys, prefixes, device))


def _group(
    asking: tuple[np.ndarray, np.ndarray],
    seen: tuple[np.ndarray, np.ndarray],
    prefixes: Sequence[PrefixSpan],
    device: torch.device,
) -> tuple[tuple[Group, ...], Tensor]:
    """`asking` has each row's length and start among the queries, `seen` among the keys: often the same."""
    (lengths, starts), (seen_lengths, seen_starts) = asking, seen
    num_prefix = max((span.start + span.length for span in prefixes), default=0)
    prefix_start = np.array([span.start for span in prefixes], dtype=np.int64)
    prefix_length = np.array([span.length for span in prefixes], dtype=np.int64)
    order = np.argsort(seen_lengths, kind="stable")
    ordered = seen_lengths[order]
    unpad = np.empty(int(lengths.sum()), dtype=np.int64)
    groups: list[Group] = []
    begin = padded = 0
    while begin < len(order):
        limit = ordered[begin] * _GROUP_RATIO + _GROUP_SLACK
        end = int(np.searchsorted(ordered, limit, side="right"))
        members = order[begin:end]
        length, prefix = lengths[members][:, None], prefix_length[members][:, None]
        visible = seen_lengths[members][:, None]
        longest = int(length.max())
        columns = np.arange(longest)[None, :]
        queries = starts[members][:, None] + np.minimum(columns, length - 1)
        columns = np.arange(int((visible + prefix).max()))[None, :]
        keys = np.where(
            columns < prefix,
            prefix_start[members][:, None] + columns,
            num_prefix + seen_starts[members][:, None] + np.clip(columns - prefix, 0, visible - 1),
        )
        real = np.arange(longest)[None, :] < length
        unpad[queries[real]] = padded + np.flatnonzero(real)
        padded += queries.size
        q, k = to_device([queries, keys], device)
        groups.append(Group(q, k, seen_lengths[members], prefix_length[members]))
        begin = end
    return tuple(groups), to_device([unpad], device)[0]


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copy index arrays to the device in one transfer: one synchronisation, not one for each map."""
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    flat = (
        torch.from_numpy(np.concatenate([a.ravel() for a in arrays]))
        .pin_memory()
        .to(device, non_blocking=True)
    )
    parts = torch.split(flat, [a.size for a in arrays])
    return [part.view(a.shape) for part, a in zip(parts, arrays, strict=True)]
