"""Loopback ports for servers that must be told one, and may end and start again on it.

Owns which ports no other test or experiment of this machine has been given. Standard library only. Must not know who
listens on them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_COUNT = 12_000
_LEAST = 1_000

_given: set[int] = set()  # a process's own locks do not hold it back
_file: list[IO[bytes]] = []  # open as long as the process lives, and with it its locks


def free_ports(count: int) -> list[int]:
    """Free ports, this process's own until it ends, also while nothing listens on them.

    They are none of those that the system gives to outgoing connections, unless it gives nearly all: one of those
    could be taken by one of the load's own while a server is down, and a client that tries again meanwhile can be
    given the port itself and connect to itself. Each is locked as one byte of a file that all processes of the user
    share, so that none that runs beside this one is given the same. Raises OSError when there are not as many.
    """
    candidates = _not_ephemeral()
    found: list[int] = []
    for port in random.SystemRandom().sample(candidates, len(candidates)):
        if len(found) == count:
            break
        if port not in _given and _locked(port) and _free(port):
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} free ports between {candidates[0]} and {candidates[-1]}")
    return found


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]


def _not_ephemeral() -> Sequence[int]:
    first, last = 32_768, 60_999
    with contextlib.suppress(OSError, ValueError):  # a system that does not tell: Linux's own default
        first, last = (int(bound) for bound in _EPHEMERAL.read_text().split())
    below, above = range(max(1_024, first - _COUNT), first), range(last + 1, 65_536)
    most = max(below, above, key=len)
    return most if len(most) >= _LEAST else range(32_768 - _COUNT, 32_768)


def _locked(port: int) -> bool:
    if not _file:
        path = Path(tempfile.gettempdir()) / f"promptmux-ports-{os.getuid()}"
        _file.append(path.open("ab"))
    try:
        fcntl.lockf(_file[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _given.add(port)
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
