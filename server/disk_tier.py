"""Prompt files in a folder of the local disk: the tier behind host memory.

Owns: the folder `prompts`, its bound in bytes, which file goes first (the one used least recently, by its time of
change), and which folders may be trusted. Must not know: other tiers, the event loop, whether bytes are right: whoever
takes them checks. Blocking, safe from several threads; a disk that fails raises OSError.

Several server processes may share the folder: a file appears whole under its name or not at all, and each process
counts what is there anew from time to time. Nothing is synced to the disk: a file torn by a power cut does not hash to
its name and is dropped when it is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prompt_store import is_version

_SUFFIX: Final = ".safetensors"
_TEMPORARY: Final = ".tmp"
_FORGOTTEN_AFTER: Final = 600.0  # seconds: a temporary file this old belongs to a process that has ended
_COUNT_EVERY: Final = 60.0  # seconds between two looks at what other processes have put here
_LOW_WATER: Final = (
    0.9  # evict down to this part of the capacity, so that not every write has to look for room
)
# Never through a link, and without waiting for whoever should write into a pipe.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FolderNotPrivate(PermissionError):
    """Others than this user could have put something into the folder."""

    def __init__(self) -> None:
        super().__init__(errno.EPERM, "the folder is another user's, or others may write to it")


def private_folder(folder: Path) -> None:
    """Make the folder unless it is there. Raises FolderNotPrivate, and OSError where it cannot be."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    seen, own = folder.stat(), os.geteuid()
    if not stat.S_ISDIR(seen.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    # A link is the operator's way to put the folder elsewhere, but not anybody's way to say where we write.
    linked_by_other = folder.lstat().st_uid not in {own, 0}
    if linked_by_other or seen.st_uid != own or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FolderNotPrivate


class DiskTier:
    """Files by version in one folder, which is made on first use, as is the cache folder that it lies in."""

    def __init__(self, folder: Path, capacity_bytes: int, *, max_file_bytes: int) -> None:
        self._folder, self.capacity_bytes, self._max_file_bytes = folder, capacity_bytes, max_file_bytes
        self._lock = threading.Lock()
        self._bytes = 0
        self._entries = 0
        self._counted: float | None = None  # monotonic time of the last look at the whole folder

    def __len__(self) -> int:
        return self._entries

    @property
    def nbytes(self) -> int:
        """Bytes in the folder, as of the last count and our own writes since."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Whether there is room for more without evicting anything soon."""
        return self._bytes < 0.8 * self.capacity_bytes

    def has(self, version: str) -> bool:
        """Whether there is a file of that name."""
        return self._path(version).exists()

    def read(self, version: str) -> bytes | None:
        """The bytes, not checked; none at all for what is too large or no file; None when nothing is here."""
        try:
            descriptor = os.open(self._path(version), _READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, a socket: not bytes of that name
                return b""
            raise
        try:
            seen = os.fstat(descriptor)
            if not stat.S_ISREG(seen.st_mode) or seen.st_size > self._max_file_bytes:
                return b""
            # One byte more than it has: a file that grows is seen to be wrong, and not read to its end.
            size = seen.st_size + 1
            chunks = []
            while size and (chunk := os.read(descriptor, size)):
                chunks.append(chunk)
                size -= len(chunk)
            with contextlib.suppress(OSError):
                os.utime(descriptor)  # used now
        finally:
            os.close(descriptor)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def write(self, version: str, data: bytes) -> int:
        """Keep the bytes; how many other files had to go for them."""
        if len(data) > self.capacity_bytes:
            return 0
        with self._lock:
            self._count_if_due()
            path, temporary = self._path(version), self._folder / f"{secrets.token_hex(8)}{_TEMPORARY}"
            try:
                with open(os.open(temporary, _CREATE, 0o600), "wb", buffering=0) as file:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[file.write(rest) :]
                before = _size(path)
                temporary.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            self._add(-(before or 0) + len(data), int(before is None))
            return self._make_room() if self._bytes > self.capacity_bytes else 0

    def drop(self, version: str) -> None:
        """Remove the file."""
        with self._lock:
            path = self._path(version)
            size = _size(path)
            path.unlink(missing_ok=True)
            if size is not None:
                self._add(-size, -1)

    def touch(self, versions: Iterable[str]) -> None:
        """Count as used now, the last of them as the last used. Saved while nothing need go soon."""
        with self._lock:
            self._count_if_due()
        if not self.has_room:
            for version in versions:
                with contextlib.suppress(FileNotFoundError):
                    os.utime(self._path(version), follow_symlinks=False)

    def count(self) -> None:
        """Look at the whole folder: what this process starts with, and what others did since."""
        with self._lock:
            self._count()

    def _count_if_due(self) -> None:
        if self._counted is None or time.monotonic() - self._counted > _COUNT_EVERY:
            self._count()

    def _count(self) -> list[tuple[float, str, int]]:
        private_folder(self._folder.parent)
        private_folder(self._folder)
        found: list[tuple[float, str, int]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    seen = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(seen.st_mode):
                        continue
                    name = entry.name.removesuffix(_SUFFIX)
                    if entry.name.endswith(_SUFFIX) and is_version(
                        name
                    ):  # whatever else lies here is not ours
                        found.append((seen.st_mtime, name, seen.st_size))
                    elif entry.name.endswith(_TEMPORARY) and seen.st_mtime < time.time() - _FORGOTTEN_AFTER:
                        os.unlink(entry.path)
        self._bytes, self._entries = sum(size for _, _, size in found), len(found)
        self._counted = time.monotonic()
        return found

    def _make_room(self) -> int:
        evicted = 0
        for _, version, size in sorted(self._count()):
            if self._bytes <= _LOW_WATER * self.capacity_bytes:
                break
            self._path(version).unlink(missing_ok=True)
            self._add(-size, -1)
            evicted += 1
        return evicted

    def _add(self, size: int, entries: int) -> None:
        self._bytes, self._entries = max(0, self._bytes + size), max(0, self._entries + entries)

    def _path(self, version: str) -> Path:
        return self._folder / f"{version}{_SUFFIX}"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
