"""Mounts and namespaces by the kernel's own calls, for a process that is root in a mount namespace of its own.

Owns: mount, unmount, overlays, and making all of a tree read-only. Must not know: what is mounted.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC = 1, 2, 4, 8, 32, 4096, 16384
_NEW_NETWORK = 0x40000000
_UP_AND_RUNNING = 0x1 | 0x40
_SET_FLAGS = 0x8914

_libc = ctypes.CDLL(None, use_errno=True)


def overlay(lower: Sequence[Path], upper: Path, scratch: Path, at: Path) -> None:
    """What `lower` has, the first above the others, with all changes going to `upper`."""
    for folder in (upper, scratch, at):
        folder.mkdir(parents=True, exist_ok=True)
    layers = ":".join(map(str, lower))
    _mount("overlay", at, "overlay", 0, f"lowerdir={layers},upperdir={upper},workdir={scratch}")


def make_opaque(folder: Path) -> None:
    """As the upper part of an overlay, hide what lies below."""
    folder.mkdir(parents=True, exist_ok=True)
    os.setxattr(folder, "trusted.overlay.opaque", b"y")


def make_absent(path: Path) -> None:
    """As the upper part of an overlay, hide what has this name below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def tmpfs(at: Path, *, mode: int = 0o755, exec_: bool = True) -> None:
    """An empty file system in memory, as an engine mounts one."""
    at.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", at, "tmpfs", _NOSUID | _NODEV | (0 if exec_ else _NOEXEC), f"mode={mode:o}")


def overlay_memory(at: Path) -> None:
    """An empty file system in memory that may hold the upper parts of overlays: their marks are device nodes."""
    at.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", at, "tmpfs", 0, "mode=755")


def proc(at: Path) -> None:
    """The processes of this PID namespace."""
    at.mkdir(parents=True, exist_ok=True)
    _mount("proc", at, "proc", _NOSUID | _NODEV | _NOEXEC, "")


def devices(at: Path) -> None:
    """The few devices that every container has."""
    tmpfs(at)
    for name in ("null", "zero", "full", "random", "urandom"):
        bind(Path("/dev") / name, at / name)
    tmpfs(at / "shm", mode=0o1777, exec_=False)


def bind(source: Path, at: Path) -> None:
    """Show `source`, with all that is mounted in it, at another place too."""
    if not at.exists():
        at.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            at.mkdir()
        else:
            at.touch()
    _mount(str(source), at, "", _BIND | _REC, "")


def unmount(at: Path) -> None:
    """Take the uppermost mount away."""
    if _libc.umount2(os.fsencode(at), 2):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(at))


def make_read_only(tree: Path) -> None:
    """All mounts at and below `tree`, as they stand now."""
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        at = Path(line.split()[4].encode().decode("unicode_escape"))
        if at == tree or tree in at.parents:
            _mount(
                "", at, "", _BIND | _REMOUNT | _RDONLY | _NOSUID | (0 if "dev" in at.parts else _NODEV), ""
            )


def own_network() -> None:
    """From now on this process has a network of its own: loopback, and all ports free."""
    if _libc.unshare(_NEW_NETWORK):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))


def _mount(source: str, at: Path, kind: str, flags: int, data: str) -> None:
    if _libc.mount(source.encode(), os.fsencode(at), kind.encode(), ctypes.c_ulong(flags), data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: mount {kind or 'bind'} {source}", str(at))
