"""Owns how plain data with tensors in it travels between the processes of one run: as one line of bytes.

Only between processes that one launcher started: reading a parcel runs what its pickle says. Prompt files and saved
states are never written like this. Knows no process and no network.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Spec:
    """A tensor's form, and whether it lay on the host."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    host: bool

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def pack(value: object) -> Tensor:
    """`value` as bytes [n], uint8, on the host. Its tensors are copied as they are, without their history."""
    tensors: list[Tensor] = []

    def apart(tensor: Tensor) -> tuple[Callable[[int], Tensor], tuple[int]]:
        tensors.append(tensor.detach())
        return _place, (len(tensors) - 1,)

    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, pickle.HIGHEST_PROTOCOL)
    # Called for tensors only: a hook for every object would be called for each token of each row.
    pickler.dispatch_table = copyreg.dispatch_table.copy() | {Tensor: apart}
    pickler.dump(value)
    specs = [_Spec(tuple(t.shape), t.dtype, t.device.type == "cpu") for t in tensors]
    head = pickle.dumps((specs, stream.getvalue()), pickle.HIGHEST_PROTOCOL)
    parts = [torch.frombuffer(bytearray(len(head).to_bytes(8, "little") + head), dtype=torch.uint8)]
    parts += [t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in tensors if t.numel()]
    return torch.cat(parts)


def unpack(parcel: Tensor, device: torch.device) -> Any:
    """What was packed; tensors that lay on the sender's device come to `device`, those on its host to the host."""
    data = parcel.numpy()
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    specs, body = pickle.loads(data[8:begin].tobytes())
    tensors = []
    for spec in specs:
        end = begin + spec.nbytes
        # A copy, so that the bytes of a float begin where a float may.
        tensor = parcel[begin:end].clone().view(spec.dtype).reshape(spec.shape)
        tensors.append(tensor if spec.host else tensor.to(device))
        begin = end
    return _Reader(io.BytesIO(body), tensors).load()


class _Reader(pickle.Unpickler):
    """Puts tensors where their places are."""

    def __init__(self, stream: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (_place.__module__, _place.__qualname__):
            return self._tensors.__getitem__
        return super().find_class(module, name)


def _place(at: int) -> Tensor:
    raise AssertionError("stands for a tensor in a parcel and is never called")
