"""What a failing disk or database is to a caller: StoreUnavailable, with what to do about it.

Owns: the translation of OSError and sqlite3.Error. Must not know: what was being done.
The original error stays the cause, for the log; the message has no path and no library's words.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prompt_store.errors import StoreUnavailable

_FULL: Final = "the store's disk is full: free space on it, then try again"
_READ_ONLY: Final = "the store cannot be written: check that it is mounted read-write and owned by this user"
_NO_ACCESS: Final = "the store cannot be opened: check that its folder exists and that this user may use it"
_BROKEN_DISK: Final = "the store's disk reports errors: check the disk and the kernel's log"
_TOO_MANY_FILES: Final = "too many open files: raise this process's limit (ulimit -n)"
_LOCKED: Final = "another process keeps the store locked: try again, and look for a process that hangs"
_DAMAGED: Final = "the store's catalogue is damaged: restore it from a backup"

_BY_ERRNO: Final = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.ENOENT: _NO_ACCESS,
    errno.ENOTDIR: _NO_ACCESS,
    errno.EEXIST: _NO_ACCESS,
    errno.EIO: _BROKEN_DISK,
    errno.EMFILE: _TOO_MANY_FILES,
    errno.ENFILE: _TOO_MANY_FILES,
}
_BY_SQLITE: Final = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _NO_ACCESS,
    sqlite3.SQLITE_CANTOPEN: _NO_ACCESS,
    sqlite3.SQLITE_IOERR: _BROKEN_DISK,
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}


@contextmanager
def as_unavailable() -> Iterator[None]:
    """Turn the disk's and SQLite's errors into StoreUnavailable; all others pass."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "no reason given"
        message = _BY_ERRNO.get(error.errno or 0, f"the store's file system failed: {reason}")
        raise StoreUnavailable(message) from error
    except sqlite3.Error as error:
        raise StoreUnavailable(
            _BY_SQLITE.get(primary_code(error), "the store's catalogue failed: see the log")
        ) from error


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 for an error that Python's module made itself."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
