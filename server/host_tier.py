"""Prompt files in host memory, as bytes and decoded: the tier behind the device.

Owns: which files are held, bounded by bytes, least recently used first to go. Must not know: other tiers, what a file
means, whether its bytes are still right: whoever takes them checks. Used on the event loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# What a file takes beside its bytes: the objects that hold it, its key, its place in the table.
_OVERHEAD: Final = 500


@dataclass(frozen=True, slots=True)
class Held(Generic[T]):
    """A file; `decoded`, made from these very bytes, is None before anybody needed it and takes `decoded_bytes`."""

    data: bytes
    decoded: T | None = None
    decoded_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return len(self.data) + self.decoded_bytes + _OVERHEAD


class HostTier(Generic[T]):
    """Files by version."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._files: OrderedDict[str, Held[T]] = OrderedDict()  # least recently used first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._files)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._bytes

    def versions(self) -> list[str]:
        """What is held, least recently used first."""
        return list(self._files)

    def get(self, version: str) -> Held[T] | None:
        """The file, not checked; None when it is not here."""
        held = self._files.get(version)
        if held is not None:
            self._files.move_to_end(version)
        return held

    def put(self, version: str, held: Held[T]) -> int:
        """Hold the file; how many others had to go for it."""
        self.drop(version)
        if held.nbytes > self.capacity_bytes:
            return 0
        self._files[version] = held
        self._bytes += held.nbytes
        evicted = 0
        while self._bytes > self.capacity_bytes:
            _, old = self._files.popitem(last=False)
            self._bytes -= old.nbytes
            evicted += 1
        return evicted

    def drop(self, version: str) -> None:
        """Let go of the file."""
        held = self._files.pop(version, None)
        if held is not None:
            self._bytes -= held.nbytes
