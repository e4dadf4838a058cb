"""Owns the parameterisations in which several tasks are learned together and share tensors.

    Shared     every task has the same prompt             P-Tuning v2's multi-task start: Liu et al. 2022, section 3.3
    Factored   prompt of task k = shared ∘ (u_k · v_k)    MPT: Wang et al. 2023, arXiv 2303.02861, section 3.1

Raw names: `shared.` and the name in the file; `task.{k}.` and the name of what is task k's alone: its head, and
`task.{k}.{name}.u`, `task.{k}.{name}.v`. Every task is published as a plain prompt of its own, and a server knows
nothing of the others. Knows no backbone and no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainer.networks import generator_of

_SHARED = "shared."
_PURPOSE = 3
# Of u's further columns, whose rows of v start at zero: small, as they are steps away from the shared prompt.
_SCALE = 0.1


class MultitaskParameterisation(Protocol):
    """What several tasks train together, and how it becomes the tensors of each one's prompt file.

    As `trainer.parameterisation.Parameterisation`: frozen settings, pure functions, dicts of named tensors.
    """

    def start(
        self, wanted: Mapping[str, Tensor], tasks: Sequence[Mapping[str, Tensor]], seed: int
    ) -> dict[str, Tensor]:
        """Raw tensors with which every task's fold is `wanted` and its own.

        `wanted` is the common start, soft prompt or prefix, named as in the prompt file; `tasks` are the tensors that
        are one task's alone, its head, in the order by which tasks are numbered from 0.
        """

    def fold_task(self, raw: Mapping[str, Tensor], task: int) -> dict[str, Tensor]:
        """The tensors of one task's prompt file. Differentiable, a pure function, in the dtype of `raw`."""

    def new_task(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a task that was not among them starts from: soft prompt or prefix, named as in the prompt file."""


@dataclass(frozen=True)
class Shared:
    """All tasks have one prompt, and a head each; each then goes on from it by itself."""

    def start(
        self, wanted: Mapping[str, Tensor], tasks: Sequence[Mapping[str, Tensor]], seed: int
    ) -> dict[str, Tensor]:
        """The fold is exact."""
        return {_SHARED + name: tensor for name, tensor in wanted.items()} | _own(tasks)

    def fold_task(self, raw: Mapping[str, Tensor], task: int) -> dict[str, Tensor]:
        """The shared prompt, and the task's head."""
        return _within(raw, _SHARED) | _within(raw, _task(task))

    def new_task(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The shared prompt."""
        return _within(raw, _SHARED)


@dataclass(frozen=True)
class Factored:
    """Prompt of task k = S ∘ (u_k · v_k): shared S [n, w], task k's u [n, rank] and v [rank, w], ∘ elementwise.

    A prefix's keys, and its values, are each such a matrix, with a row for each virtual token and w = layers ·
    kv_heads · head_dim. u_k · v_k starts at all ones, so every task starts at the shared prompt: the first column of u
    and row of v are ones, further rows of v zero. PEFT draws both from N(0, 0.02²): its prompts start near zero.
    """

    rank: int = 1

    def start(
        self, wanted: Mapping[str, Tensor], tasks: Sequence[Mapping[str, Tensor]], seed: int
    ) -> dict[str, Tensor]:
        """The fold is exact."""
        generator = generator_of(seed, _PURPOSE)
        raw = {_SHARED + name: tensor for name, tensor in wanted.items()} | _own(tasks)
        for task in range(len(tasks)):
            for name, tensor in wanted.items():
                count, width = _as_matrix(tensor).shape
                u = torch.randn(count, self.rank, generator=generator, dtype=torch.float64) * _SCALE
                v = torch.zeros(self.rank, width)
                u[:, 0], v[0] = 1, 1
                raw[f"{_task(task)}{name}.u"] = u.to(tensor.device, tensor.dtype)
                raw[f"{_task(task)}{name}.v"] = v.to(tensor.device, tensor.dtype)
        return raw

    def fold_task(self, raw: Mapping[str, Tensor], task: int) -> dict[str, Tensor]:
        """The shared prompt times the task's own factor, and the task's head."""
        shared, own = _within(raw, _SHARED), _within(raw, _task(task))
        prompt = {
            name: _times(tensor, own.pop(f"{name}.u") @ own.pop(f"{name}.v"))
            for name, tensor in shared.items()
        }
        return prompt | own

    def new_task(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The shared prompt times the mean of all tasks' factors.

        The mean of the products: u and v may trade any scale, so means of their own would depend on how a factor
        happens to be divided between them.
        """
        tasks = {int(name.split(".")[1]) for name in raw if name.startswith("task.")}
        result = {}
        for name, tensor in _within(raw, _SHARED).items():
            factors = [raw[f"{_task(k)}{name}.u"] @ raw[f"{_task(k)}{name}.v"] for k in sorted(tasks)]
            result[name] = _times(tensor, torch.stack(factors).mean(dim=0))
        return result


def _task(number: int) -> str:
    return f"task.{number}."


def _own(tasks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {_task(at) + name: tensor for at, own in enumerate(tasks) for name, tensor in own.items()}


def _within(raw: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in raw.items() if name.startswith(start)}


def _as_matrix(tensor: Tensor) -> Tensor:
    """A soft prompt [n, width] as it is, keys or values [layers, n, kv_heads, head_dim] as [n, all the rest]."""
    return tensor if tensor.dim() == 2 else tensor.transpose(0, 1).flatten(1)


def _times(tensor: Tensor, factor: Tensor) -> Tensor:
    """`tensor` times a factor [n, all the rest], elementwise."""
    if tensor.dim() == 2:
        return tensor * factor
    layers, count, heads, width = tensor.shape
    return tensor * factor.reshape(count, layers, heads, width).transpose(0, 1)
