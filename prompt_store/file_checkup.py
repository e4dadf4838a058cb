"""What is wrong with a store in a folder, and what to change.

Owns: the judgement of the folder, its file system and its disk. Must not know: the command line.
"""

import asyncio
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prompt_store.blobs import BlobFolder
from prompt_store.errors import PromptStoreError
from prompt_store.file_store import FileStore
from prompt_store.finding import UNKNOWN, Finding, Verdict
from prompt_store.schema import CATALOGUE
from prompt_store.unavailable import as_unavailable

_FAR: Final = {
    *(
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "lustre",
        "gpfs",
        "gfs2",
        "ocfs2",
        "glusterfs",
    ),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.juicefs"),
}
_FLEETING: Final = {
    "overlay": "it is the container's own layer, and gone with it: mount a volume there",
    "tmpfs": "it is memory, and gone when the machine restarts: use a folder on a disk",
    "ramfs": "it is memory, and gone when the machine restarts: use a folder on a disk",
}
_ROOM: Final = (2**27, 2**30)  # bytes free: a problem below, a warning below
_SLOW_FSYNC: Final = 0.1
_LEFT: Final = 3600.0  # seconds after which a half-written file belongs to nobody
# Where SQLite's "WAL reset" flaw is mended: the first such release of each series.
_WAL_MENDED: Final = ((3, 44, 6), (3, 50, 7), (3, 51, 3))


async def examine_folder(root: Path) -> tuple[list[Finding], bool]:
    """Every finding about the store in `root`, and whether one is there to be read; makes none."""
    findings = await asyncio.to_thread(lambda: [*_outside(root)])
    there = (root / CATALOGUE).is_file() and findings[0].verdict != "problem"
    if there:
        findings += await _inside(root)
    return findings, there


def _outside(root: Path) -> Iterator[Finding]:
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    may_write = os.access(there, os.W_OK | os.X_OK)
    if root == there and not root.is_dir():
        yield Finding("folder", "is no folder", "problem", "give the path of a folder in --store")
        return
    if not may_write:
        found = "this user may not write it" if root == there else "not there, and cannot be made"
        advice = (
            f"run as its owner, or: chown -R {_user()} {root}"
            if root == there
            else f"mkdir -p {root}, as a user who may"
        )
        yield Finding("folder", found, "problem", advice)
        return
    if root != there:
        advice = "check the spelling: `promptmux serve` would make a new, empty store here"
        yield Finding("folder", "not there yet", "warning", advice)
    elif not (root / CATALOGUE).is_file():
        yield Finding("folder", "writable, no store in it yet")
    else:
        yield Finding("folder", "writable")
    yield _file_system(there)
    yield _free(there)
    yield _fsync(there)
    yield _sqlite()


def _user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # an id without a name, as in some containers
        return str(os.getuid())


def _file_system(folder: Path) -> Finding:
    kind = file_system_of(folder)
    if kind is None:
        return Finding("file system", UNKNOWN)
    if kind in _FAR:
        advice = "its locks do not keep machines apart: use a local disk, or --store redis://…"
        return Finding("file system", f"{kind}, on a network", "problem", advice)
    if kind in _FLEETING:
        return Finding("file system", kind, "warning", _FLEETING[kind])
    return Finding("file system", kind)


def file_system_of(folder: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The kind of file system that `folder` lies on; None where the system does not say."""
    try:
        lines = mounts.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    path, best, kind = folder.resolve(), -1, None
    for line in lines:
        _, place, name, *_ = line.split(" ")
        point = Path(place.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        # The last of equals: a mount hides what was mounted there before.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), name
    return kind


def _free(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:,.1f} GiB"
    if free >= _ROOM[1]:
        return Finding("free space", found)
    verdict: Verdict = "problem" if free < _ROOM[0] else "warning"
    return Finding("free space", found, verdict, "free some; deleted versions: promptmux collect --store …")


def _fsync(folder: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            took = time.perf_counter() - started
    except OSError as error:
        return Finding(
            "fsync", error.strerror or "failed", "problem", "check the disk, its mount and the kernel's log"
        )
    found = f"{took * 1000:.1f} ms"
    if took < _SLOW_FSYNC:
        return Finding("fsync", found)
    return Finding(
        "fsync", found, "warning", "every publish waits for several of these: use a faster or less busy disk"
    )


def _sqlite() -> Finding:
    version = sqlite3.sqlite_version_info
    if version >= _WAL_MENDED[-1] or any(version[:2] == one[:2] and version >= one for one in _WAL_MENDED):
        return Finding("SQLite", sqlite3.sqlite_version)
    releases = ", ".join(".".join(map(str, one)) for one in _WAL_MENDED)
    return Finding(
        "SQLite",
        f"{sqlite3.sqlite_version}, whose log has a rare flaw",
        "warning",
        "two processes that write at once may, very rarely, damage the catalogue (the WAL-reset bug). Use a Python with"
        f" SQLite {releases} or newer, and keep backups",
    )


async def _inside(root: Path) -> list[Finding]:
    store = FileStore(root)
    try:
        findings = [await asyncio.to_thread(_catalogue, root)]
        if findings[0].verdict != "problem":
            findings.append(await _blobs(store, BlobFolder(root)))
        return [*findings, await asyncio.to_thread(_leftovers, root)]
    except PromptStoreError as error:
        return [Finding("catalogue", "cannot be used", "problem", str(error))]
    finally:
        await store.aclose()


def _catalogue(root: Path) -> Finding:
    with as_unavailable():
        database = sqlite3.connect(f"{(root / CATALOGUE).resolve().as_uri()}?mode=rw", uri=True, timeout=5)
        try:
            mode = str(database.execute("PRAGMA journal_mode").fetchone()[0])
            said = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            database.close()
    if said != "ok":
        return Finding(
            "catalogue", f"damaged: {said}", "problem", "restore it from a backup, or try sqlite3's .recover"
        )
    if mode != "wal":
        advice = f"sqlite3 {root / CATALOGUE} 'PRAGMA journal_mode=WAL'; promptmux serve does so, too"
        return Finding("catalogue", f"whole, journal mode {mode}", "warning", advice)
    return Finding("catalogue", "whole, journal mode WAL")


async def _blobs(store: FileStore, blobs: BlobFolder) -> Finding:
    """Whether every version's file is there and of the right length; `--deep` reads them."""
    after: str | None = None
    tasks, versions = 0, 0
    wrong: list[str] = []
    while True:
        page = await store.list(after=after, limit=500)
        for task in page.tasks:
            sizes = await asyncio.to_thread(
                lambda versions: [blobs.size(one.version) for one in versions], task.versions
            )
            tasks, versions = tasks + 1, versions + len(sizes)
            wrong += [
                f"{task.task_id} {one.version[:12]}"
                for one, size in zip(task.versions, sizes, strict=True)
                if size != one.size
            ]
        after = page.next
        if after is None:
            break
    found = f"{tasks:,} tasks, {versions:,} versions, every file there"
    if not wrong:
        return Finding("store", found)
    named = ", ".join(wrong[:5]) + (", …" if len(wrong) > 5 else "")
    return Finding(
        "store", f"{len(wrong)} of {versions:,} files lost or cut", "problem", f"publish them again: {named}"
    )


def _leftovers(root: Path) -> Finding:
    old = BlobFolder(root).leftovers(_LEFT)
    if not old:
        return Finding("leftovers", "none")
    return Finding(
        "leftovers", f"{old} files of publishes that crashed", "warning", f"promptmux collect --store {root}"
    )
