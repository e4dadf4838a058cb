"""Files named by the digest of their bytes, in one folder.

Owns: how bytes become durable, and how they are removed. Must not know: which blobs are needed, SQLite.
Blocking; errors are OSError.

    blobs/<sha256>.safetensors    never changes; replaced only by the same bytes
    tmp/<random>                  being written; on the same file system, so that a rename moves it
"""

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from prompt_store.names import is_version

_SUFFIX: Final = ".safetensors"


class BlobFolder:
    """The folders `blobs` and `tmp` under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._temporary = root / "tmp"

    def create(self) -> None:
        """Make the folders, where they are not there, so that they outlive a power cut."""
        for folder in (self._blobs, self._temporary):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
        # Also where they were there: whoever made one of them may not have got so far as to sync it.
        root = self._root.resolve()
        for folder in (root, *root.parents):
            with suppress(
                PermissionError
            ):  # a folder that we may pass through and not read is not of our making
                _sync_folder(folder)
            if folder.is_mount():
                break

    def write(self, digest: str, data: bytes) -> None:
        """Put `data` under its digest; on the disk when this returns; never in part."""
        temporary = self._temporary / secrets.token_hex(16)
        try:
            # Read-only, as nobody is to write to it again; not mkstemp: its 0600 would shut out other users.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, self._path(digest))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(self._blobs)

    def read(self, digest: str) -> bytes:
        """The bytes under this digest, unchecked; FileNotFoundError when there are none."""
        return self._path(digest).read_bytes()

    def size(self, digest: str) -> int | None:
        """The size in bytes, or None when there is no such blob."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def usable(self) -> bool:
        """Whether the folder itself is there, and may be looked into."""
        try:
            with os.scandir(self._blobs) as entries:
                next(entries, None)
        except OSError:
            return False
        return os.access(self._blobs, os.X_OK)

    def touch(self, *digests: str) -> None:
        """Let the grace time of blobs that are about to lose their last reference begin now."""
        for digest in digests:
            with suppress(FileNotFoundError):
                os.utime(self._path(digest))

    def older_than(self, seconds: float) -> Iterator[str]:
        """Digests of the blobs that were written or touched at least `seconds` ago."""
        for entry in _files_older_than(self._blobs, seconds):
            digest = entry.name.removesuffix(_SUFFIX)
            if is_version(digest) and entry.name.endswith(_SUFFIX):  # whatever else lies here is not ours
                yield digest

    def remove(self, digest: str) -> int:
        """Remove a blob; how many bytes that freed, 0 when it was gone."""
        size = self.size(digest)
        self._path(digest).unlink(missing_ok=True)
        return size or 0

    def remove_leftovers(self, seconds: float) -> None:
        """Remove what publishes that crashed at least `seconds` ago left half-written.

        One that only is slow loses its file too: FileNotFoundError from its `write`.
        """
        for entry in _files_older_than(self._temporary, seconds):
            Path(entry.path).unlink(missing_ok=True)

    def leftovers(self, seconds: float) -> int:
        """How many files `remove_leftovers` would remove."""
        return sum(1 for _ in _files_older_than(self._temporary, seconds))

    def _path(self, digest: str) -> Path:
        return self._blobs / f"{digest}{_SUFFIX}"


def _files_older_than(folder: Path, seconds: float) -> Iterator[os.DirEntry[str]]:
    newest = time.time() - seconds
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and found.st_mtime <= newest:
                    yield entry
            except FileNotFoundError:
                continue  # another process was quicker


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
