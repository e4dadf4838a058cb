"""Prompt files in host memory: the tier behind the device.

Owns: which files are held, bounded by bytes, least recently used first to go. Must not know: other tiers, what a file
means, whether its bytes are still right: whoever takes them checks. Used on the event loop only.
"""

from __future__ import annotations

from collections import OrderedDict

# What a file takes beside its bytes: the bytes object, its key, its place in the table.
_OVERHEAD = 300


class HostTier:
    """Bytes by version."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._files: OrderedDict[str, bytes] = OrderedDict()  # least recently used first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._files)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._bytes

    def get(self, version: str) -> bytes | None:
        """The bytes, not checked; None when they are not here."""
        data = self._files.get(version)
        if data is not None:
            self._files.move_to_end(version)
        return data

    def put(self, version: str, data: bytes) -> int:
        """Hold the bytes; how many other files had to go for them."""
        self.drop(version)
        if _size(data) > self.capacity_bytes:
            return 0
        self._files[version] = data
        self._bytes += _size(data)
        evicted = 0
        while self._bytes > self.capacity_bytes:
            _, old = self._files.popitem(last=False)
            self._bytes -= _size(old)
            evicted += 1
        return evicted

    def drop(self, version: str) -> None:
        """Let go of the bytes."""
        data = self._files.pop(version, None)
        if data is not None:
            self._bytes -= _size(data)


def _size(data: bytes) -> int:
    return len(data) + _OVERHEAD
