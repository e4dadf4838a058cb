"""A prompt in memory: its manifest and its tensors.

Owns: the value that `codec` reads and writes. Must not know: bytes, stores, devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prompt_store.manifest import Manifest
from prompt_store.members import split_members

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What a task adds to the backbone. Tensors are float32 or float16, named as `codec` says."""

    manifest: Manifest
    tensors: Mapping[str, Array] = field(repr=False)

    @property
    def num_virtual_tokens(self) -> int:
        """Rows of the soft prompt plus the length of the prefix; in an ensemble, of all members together."""
        return sum(_virtual_tokens(own) for _, own in split_members(self.manifest, self.tensors))

    def __eq__(self, other: object) -> bool:
        # Written out, as the generated one would compare arrays with `==` and fail on the answer.
        if not isinstance(other, Prompt):
            return NotImplemented
        return (
            self.manifest == other.manifest
            and self.tensors.keys() == other.tensors.keys()
            and all(_same(tensor, other.tensors[name]) for name, tensor in self.tensors.items())
        )

    __hash__ = None  # type: ignore[assignment]  # tensors have no hash; the version is a prompt's name


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b)


def _virtual_tokens(tensors: Mapping[str, Array]) -> int:
    soft = tensors.get("soft_prompt")
    prefix = next((tensor for name, tensor in tensors.items() if name.startswith("prefix.")), None)
    return (0 if soft is None else soft.shape[0]) + (0 if prefix is None else prefix.shape[1])
