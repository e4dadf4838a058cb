"""Owns what a run asks of the processes that it was started in: one alone, or several that share the rows.

One process, the first, runs the program: it reads the data, owns the learners, decides, prints and writes. The others
lend it their cores or their GPU: each has the frozen backbone, and computes its part of the rows of each step and of
each evaluation. So a run is the same program however many processes there are. Knows no network (`trainer.processes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self, TypeVar

from backbone import Backbone, load_backbone
from trainer.errors import ConfigError

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

# How long the first process waits for another that should have answered, and another for its next work. Whose
# connection breaks is known at once; this is for a machine that lost its power or its network.
ANSWER_WITHIN = timedelta(minutes=30)
WORK_WITHIN = timedelta(hours=6)


class Work(Protocol[R_co]):
    """Something to do for rows. It can go to another process: rows, tensors and plain data."""

    @property
    def lengths(self) -> Sequence[int]:
        """Of each row, its tokens: the division depends on them alone."""

    def run(self, backbone: Backbone, own: list[int]) -> R_co:
        """Do it for the rows with these numbers."""


class Ranks(Protocol):
    """The processes of a run, as its first one sees them."""

    @property
    def count(self) -> int:
        """How many there are."""

    def load(self, name: str, *, device: str, dtype: str) -> Backbone:
        """Load the backbone in every process. Raises BackboneError."""

    def share(self, backbone: Backbone, work: Work[R]) -> list[tuple[list[int], R]]:
        """Divide work: each part's rows with what came of it, in the order of the processes."""

    def signal(self) -> int | None:
        """The signal that asked another process for an end, if one did."""


class Alone:
    """One process."""

    count = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def load(self, name: str, *, device: str, dtype: str) -> Backbone:
        """Load the backbone. Raises BackboneError."""
        return load_backbone(name, device=device, dtype=dtype)

    def share(self, backbone: Backbone, work: Work[R]) -> list[tuple[list[int], R]]:
        """Do all of it."""
        rows = list(range(len(work.lengths)))
        return [(rows, work.run(backbone, rows))] if rows else []

    def signal(self) -> int | None:
        """There is no other."""
        return None


ALONE = Alone()


def launched(environment: Mapping[str, str]) -> tuple[int, int, int, str, int] | None:
    """What torchrun and accelerate launch say: rank, count, place on this machine, and where the first one listens.

    None for one process. Raises ConfigError.
    """
    try:
        count = int(environment.get("WORLD_SIZE", "1"))
        if count == 1:
            return None
        rank, local = int(environment["RANK"]), int(environment["LOCAL_RANK"])
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is set, so this should be one of several processes, but {error} is missing or wrong: start "
            "them with torchrun or accelerate launch, or unset WORLD_SIZE"
        ) from None
    return rank, count, local, address, port
