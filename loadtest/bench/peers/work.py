"""What a peer is given to do, and how it is cut into padded batches. Needs numpy alone, which every peer has.

Every peer gets token ids that are ready, as our own forward gets its rows; padding is part of the measured work, as
laying rows in one line is for us.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Work:
    """Rows of token ids, special tokens included, and the number of each row's task."""

    rows: list[Ints]
    tasks: Ints

    def save(self, file: Path) -> None:
        """Write as .npz."""
        np.savez(
            file,
            ids=np.concatenate(self.rows),
            lengths=np.array([len(row) for row in self.rows], dtype=np.int64),
            tasks=self.tasks,
        )

    @classmethod
    def load(cls, file: str) -> Work:
        """Read what `save` wrote."""
        with np.load(file) as parts:
            rows = np.split(parts["ids"].astype(np.int64), np.cumsum(parts["lengths"])[:-1])
            return cls(rows, parts["tasks"])

    def batches(self, size: int, *, sort: bool) -> Iterator[list[int]]:
        """Numbers of rows, `size` at a time: as they come, or by length, which pads least."""
        order = list(range(len(self.rows)))
        if sort:
            order.sort(key=lambda row: len(self.rows[row]))
        for at in range(0, len(order), size):
            yield order[at : at + size]


def pad(rows: list[Ints]) -> tuple[Ints, Ints, Ints]:
    """Token ids, attention mask, and which places are text: [rows, longest] each. The special tokens at both ends
    are attended but not averaged, as in our own `mean` pooling.
    """
    lengths = np.array([len(row) for row in rows])[:, None]
    places = np.arange(int(lengths.max()))[None, :]
    ids = np.zeros((len(rows), places.shape[1]), dtype=np.int64)
    attended = places < lengths
    ids[attended] = np.concatenate(rows)
    text = (places > 0) & (places < lengths - 1)
    return ids, attended.astype(np.int64), text.astype(np.int64)
