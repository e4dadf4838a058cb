"""Owns who may train in a folder: one process at a time.

The kernel keeps the lock (flock), on a file in the folder, and lets it go however its process ends: nobody has to clean
up after a kill. Knows no run.
"""

from __future__ import annotations

import os
import socket
import sys
import weakref
from pathlib import Path
from typing import IO

from trainer.errors import RunFolderError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

NAME = "lock"


class Lock:
    """Held for as long as this object lives."""

    def __init__(self, file: IO[str]) -> None:
        weakref.finalize(self, file.close)  # which lets the lock go


# One process may open a folder more than once, and flock would refuse it its own lock.
_held: weakref.WeakValueDictionary[tuple[int, int], Lock] = weakref.WeakValueDictionary()


def lock_folder(folder: Path) -> Lock:
    """Make the folder if there is none, and lock it; this process gets the lock that it has.

    Raises RunFolderError when another process has it, or the folder cannot be written to. Where the file system has no
    locks, a warning says so, and nobody is kept out.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{folder.parent}: {error.strerror}") from None
    status = os.fstat(file.fileno())
    which = (status.st_dev, status.st_ino)
    if held := _held.get(which):
        file.close()
        return held
    try:
        if fcntl is None:
            raise OSError("this system has none")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        file.close()
        raise RunFolderError(
            f"{folder.parent}: {who} trains in it now; wait until it ends, or end it"
        ) from None
    except OSError as error:
        print(
            f"warning: {path}: no lock to be had ({error.strerror or error}); see to it that no other process trains "
            f"in {folder.parent}",
            file=sys.stderr,
        )
    else:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    lock = _held[which] = Lock(file)
    return lock
