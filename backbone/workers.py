"""Single-threaded workers that share a batch's rows among the CPU's cores.

Owns the threads and the division of rows. The usual way to use several cores, one operator on all of them at a time,
meets at a barrier some hundred times in a forward; when anything else wants a core (the event loop, a neighbour on
the machine), each barrier waits for a time slice. Rows are independent by the law, so that each core can run its own
share of them from beginning to end and meet the others once. Knows nothing of models or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

# Below this many tokens a share is not worth a thread; a lone row above _WIDE gains from several threads inside.
_LEAST_SHARE, _WIDE = 24, 256


class Workers:
    """Runs a function on shares of a batch, one core each."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count, "promptmux-core", initializer=use_one_core)
        self._wide = ThreadPoolExecutor(
            1, "promptmux-wide", initializer=torch.set_num_threads, initargs=(count,)
        )

    def wide(self, function: Callable[[], T]) -> T:
        """Call `function` on the one thread whose operators use all cores: each such thread keeps a team of its own."""
        return self._wide.submit(function).result()

    def map(self, function: Callable[[list[int]], T], lengths: Sequence[int]) -> list[tuple[list[int], T]]:
        """Call `function` with the row numbers of each share; return the shares with what it gave for them.

        The division depends on `lengths` alone. An exception of any share is raised after all shares have ended.
        """
        tokens = sum(lengths)
        if is_wide(lengths):
            return [([0], self.wide(lambda: function([0])))]
        shares = divide(lengths, max(1, min(self.count, len(lengths), tokens // _LEAST_SHARE)))
        waiting = [self._threads.submit(function, share) for share in shares]
        errors = [error for error in (future.exception() for future in waiting) if error is not None]
        if errors:
            raise errors[0]
        return [(share, future.result()) for share, future in zip(shares, waiting, strict=True)]


def divide(lengths: Sequence[int], shares: int) -> list[list[int]]:
    """Deal rows to shares of nearly equal tokens: from the longest on, each to the share that has least."""
    dealt: list[list[int]] = [[] for _ in range(shares)]
    loads = [0] * shares
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        least = loads.index(min(loads))
        dealt[least].append(row)
        loads[least] += lengths[row]
    return [sorted(share) for share in dealt if share]


def is_wide(lengths: Sequence[int]) -> bool:
    """Whether this is one row that gains from several cores inside its operators."""
    return len(lengths) == 1 and lengths[0] >= _WIDE


def use_one_core() -> None:
    """Let the operators of this thread run on one core."""
    # Holds for this thread and for threads that have not used torch yet; those that have keep their number.
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
