"""Owns what is trained, and how it becomes the tensors of a prompt file. Knows no backbone, no optimiser, no file.

A method may train other tensors than those that are served: an encoder that makes the soft prompt (P-Tuning), a
network that makes keys and values (Prefix-Tuning), a residual beside the prompt. They are *raw* tensors; `fold` turns
them into what the forward and the prompt file hold, in every training step and once more at the end, so that a server
never sees how a prompt was made.

Raw tensors travel as dicts: the optimiser, the average of the weights, checkpoints and warm starts handle them by name.
A raw name is a file's own name, or `reparam.` and anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

REPARAM = "reparam."


class Parameterisation(Protocol):
    """What is trained, and how it becomes the tensors of a prompt file.

    Implementations are frozen dataclasses that hold settings and nothing else, and may be shared among threads.
    """

    def start(self, wanted: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Raw tensors whose fold is `wanted`, or as near as the class says; the same seed gives the same ones.

        `wanted` is named as in the prompt file, float32 or float64: `soft_prompt` [n, width],
        `prefix.{stack}.{key,value}` [layers, n, kv_heads, head_dim]. Heads (`head.*`, `verbalizer.*`) pass through
        untouched, and so does whatever the class does not make.
        """

    def fold(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prompt file's tensors. Differentiable, a pure function, in the dtype of `raw`.

        It is called on several threads at once.
        """


@dataclass(frozen=True)
class Plain:
    """The prompt's tensors are trained themselves: Prompt Tuning and P-Tuning v2 as they are usually run."""

    def start(self, wanted: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """`wanted` itself."""
        return dict(wanted)

    def fold(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`raw` itself."""
        return dict(raw)
