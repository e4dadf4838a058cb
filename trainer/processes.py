"""Owns the several processes of a run: how the first one gives them work, and how all of them end.

The first sends each piece of work to all; each computes its part, and answers with what came of it, what went wrong,
and whether a signal asked it for an end. The first alone decides. Everything goes through the host (gloo): it is some
KB of rows and some KB to MB of prompts and gradients, and a GPU is not needed for that. Knows no learner and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from backbone import Backbone, BackboneError, load_backbone
from backbone.workers import divide
from trainer.deterministic import deterministic
from trainer.errors import RanksError
from trainer.interrupt import stop_on_signals
from trainer.parcel import pack, unpack
from trainer.ranks import ALONE, ANSWER_WITHIN, WORK_WITHIN, Alone, Work, launched

R = TypeVar("R")
HOST = torch.device("cpu")


@dataclass(frozen=True)
class _Load:
    """The backbone that all processes load."""

    name: str
    device: str
    dtype: str

    def run(self, local: int) -> Backbone:
        return load_backbone(self.name, device=own_device(self.device, local), dtype=self.dtype)


@dataclass(frozen=True)
class _Answer:
    """What came of a process's part; `error` is a line for a person, `memory` whether its device had none left."""

    result: Any
    error: str | None
    signal: int | None
    memory: bool = False


def join(
    environment: Mapping[str, str],
    *,
    answer_within: timedelta = ANSWER_WITHIN,
    work_within: timedelta = WORK_WITHIN,
) -> Alone | Leader | Helper:
    """Meet the other processes of a run that torchrun or accelerate launch started; `ALONE` when there are none.

    A context manager: at its end the others are let go. All that a `Helper` has to do is `help`. Raises ConfigError,
    and RanksError when the others do not come.
    """
    known = launched(environment)
    if known is None:
        return ALONE
    rank, count, local, address, port = known
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=rank,
            world_size=count,
            timeout=answer_within,
        )
        # Each process waits for work by its own measure: the first for the others to take it, they for it to come.
        work = dist.new_group(timeout=answer_within if rank == 0 else work_within)
    except (RuntimeError, ValueError) as error:
        raise RanksError(
            f"the {count} processes of this run did not meet at {address}:{port}: {_line(error)}"
        ) from None
    return Leader(count, local, work) if rank == 0 else Helper(rank, count, local, work)


def own_device(device: str, local: int) -> str:
    """Which device the process at this place on its machine uses: on GPUs, one each. Raises BackboneError."""
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    if local >= torch.cuda.device_count():
        raise BackboneError(
            f"there are more processes than GPUs on this machine ({torch.cuda.device_count()}): start one for each"
        )
    return f"cuda:{local}"


class _Process:
    """What the first process and the others have in common."""

    def __init__(self, count: int, local: int, work: Any) -> None:
        self.count, self._local, self._work = count, local, work

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        dist.destroy_process_group()

    def _announce(self, parcel: Tensor | None) -> Tensor:
        """Bring bytes from the first process to all."""
        size = torch.tensor([0 if parcel is None else len(parcel)])
        dist.broadcast(size, 0, group=self._work)
        data = torch.empty(int(size), dtype=torch.uint8) if parcel is None else parcel
        dist.broadcast(data, 0, group=self._work)
        return data


class Leader(_Process):
    """The first process, as `trainer.ranks.Ranks`."""

    def __init__(self, count: int, local: int, work: Any) -> None:
        super().__init__(count, local, work)
        self._in_step = True  # whether the others wait for work
        self._signal: int | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the others go; those that cannot be told see that the connection is closed."""
        try:
            if self._in_step:
                self._announce(pack(None))
        except RuntimeError:
            pass  # one of them has gone before: there is nothing that it needs to be told
        finally:
            super().__exit__(kind, error, trace)

    def load(self, name: str, *, device: str, dtype: str) -> Backbone:
        """Load the backbone in every process. Raises BackboneError, and RanksError if one has another model."""
        order = _Load(name, device, dtype)
        backbone: Backbone
        backbone, answers = self._together(order, lambda: order.run(self._local), HOST)
        for rank, loaded in enumerate(answers, 1):
            if loaded != _identity(backbone):
                raise RanksError(
                    f"process {rank} has another model under the name {name!r}, or computes in another dtype: give all "
                    "machines the same files, and set dtype"
                )
        return backbone

    def share(self, backbone: Backbone, work: Work[R]) -> list[tuple[list[int], R]]:
        """Divide work among the processes; one row's worth is not sent. Raises RanksError when one fails or is gone."""
        shares = divide(work.lengths, self.count)
        if len(shares) < 2:
            return ALONE.share(backbone, work)
        own, results = self._together(work, lambda: work.run(backbone, shares[0]), backbone.device)
        return list(zip(shares, [own, *results], strict=False))

    def signal(self) -> int | None:
        """The signal that asked another process for an end, if one did."""
        return self._signal

    def _together(self, order: object, own: Any, device: torch.device) -> tuple[Any, list[Any]]:
        """Send an order, do the own part, and hear the others: whatever fails, all answer before it is raised."""
        self._in_step = False
        failure: Exception | None = None
        result = None
        try:
            self._announce(pack(order))
            try:
                result = own()
            except Exception as error:
                failure = error
            answers = [self._hear(rank, device) for rank in range(1, self.count)]
        except RuntimeError as error:
            raise RanksError(
                f"another process of this run is gone or does not answer ({_line(error)})"
            ) from None
        self._in_step = True
        if failure is not None:
            raise failure
        for rank, answer in enumerate(answers, 1):
            if answer.error is not None and answer.memory:  # for whoever knows what took it
                raise torch.OutOfMemoryError(f"process {rank}: {answer.error}")
            if answer.error is not None:
                raise RanksError(f"process {rank}: {answer.error}")
            self._signal = self._signal or answer.signal
        return result, [answer.result for answer in answers]

    def _hear(self, rank: int, device: torch.device) -> _Answer:
        size = torch.empty(1, dtype=torch.int64)
        dist.recv(size, rank)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, rank)
        answer: _Answer = unpack(data, device)
        return answer


class Helper(_Process):
    """Any other process: it does its part of what the first one asks, until that lets it go."""

    def __init__(self, rank: int, count: int, local: int, work: Any) -> None:
        super().__init__(count, local, work)
        self._rank = rank
        self._backbone: Backbone | None = None

    def help(self) -> None:
        """Work until the first process ends. Raises RanksError when it is gone.

        Ctrl-C and SIGTERM are told to the first process, which saves and ends the run for all.
        """
        with stop_on_signals() as stop, deterministic():
            try:
                while (order := unpack(self._announce(None), self._device)) is not None:
                    result, failure, memory = None, None, False
                    try:
                        result = self._do(order)
                    except Exception as error:
                        failure, memory = _line(error), isinstance(error, torch.OutOfMemoryError)
                    data = pack(_Answer(result, failure, stop.signal_number, memory))
                    dist.send(torch.tensor([len(data)]), 0)
                    dist.send(data, 0)
            except RuntimeError as error:
                raise RanksError(
                    f"process {self._rank}: the first process of this run is gone ({_line(error)})"
                ) from None

    @property
    def _device(self) -> torch.device:
        return HOST if self._backbone is None else self._backbone.device

    def _do(self, order: _Load | Work[R]) -> object:
        if isinstance(order, _Load):
            self._backbone = order.run(self._local)
            return _identity(self._backbone)
        assert self._backbone is not None, "the first order is to load it"
        shares = divide(order.lengths, self.count)
        # With fewer rows than processes the last have none.
        return order.run(self._backbone, shares[self._rank]) if self._rank < len(shares) else None


def _identity(backbone: Backbone) -> tuple[str, str]:
    return backbone.fingerprint, backbone.dtype_name


def _line(error: Exception) -> str:
    """An error in one line, with its kind where it has no words."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
