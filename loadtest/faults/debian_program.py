"""A program out of Debian's package, fetched and unpacked without root, kept in the user's cache.

Owns: which packages a program needs, where they are unpacked, and how the program finds its libraries there. Must not
know: what the program is for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Called in the stead of the program; `exec` keeps the process id, and with it every signal.
_WRAPPER = """#!/bin/sh
here=${{0%/*}}
for folder in "$here"/usr/lib/* "$here"/lib/*; do LD_LIBRARY_PATH="$folder${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"; done
export LD_LIBRARY_PATH
exec "$here/{program}" "$@"
"""
_STEPS = 3  # of libraries that need libraries; what lies deeper, apt itself needs too


class NoProgram(RuntimeError):
    """The program is not here and could not be fetched; the message says what was tried."""


def find_program(name: str, *, package: str, inside: str, version_flag: str) -> Path:
    """The program on PATH or among the system's own, else out of Debian's `package`, where it lies at `inside`.

    Raises:
        NoProgram: neither works.

    """
    # Servers are in sbin, which is not on everybody's PATH.
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(name, path=places)
    if found is not None and _runs(Path(found), version_flag):
        return Path(found)
    try:
        return from_debian(name, package=package, inside=inside, version_flag=version_flag)
    except NoProgram as error:
        raise NoProgram(
            f"no {name} on PATH (apt install {package}, brew install {package}), and {error}"
        ) from error


def from_debian(name: str, *, package: str, inside: str, version_flag: str) -> Path:
    """The program out of the package, fetched unless the cache has one that runs.

    Raises:
        NoProgram: with what failed.

    """
    root = os.environ.get("XDG_CACHE_HOME")
    kept = (Path(root) if root else Path("~/.cache").expanduser()) / "promptmux" / name
    if _runs(kept / name, version_flag):
        return kept / name
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            _unpack(package, made, Path(scratch))
            (made / name).write_text(_WRAPPER.format(program=inside))
            (made / name).chmod(0o755)
            _run([str(made / name), version_flag])
            if not _runs(kept / name, version_flag):  # else another process was quicker
                shutil.rmtree(kept, ignore_errors=True)
                made.rename(kept)
    except (NoProgram, OSError) as error:
        if not _runs(kept / name, version_flag):
            raise NoProgram(f"Debian's {package}: {error}") from error
    return kept / name


def _unpack(package: str, folder: Path, scratch: Path) -> None:
    """Put the package and the libraries that it needs into `folder`."""
    # Own package lists: those of the system are missing in images and stale elsewhere.
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    own = [f"-oDir::State::lists={scratch}/lists", f"-oDir::Cache={scratch}/cache"]
    own.append("-oAPT::Sandbox::User=")  # as who we are: _apt could not write here
    _run(["apt-get", *own, "--quiet", "update"])
    packages, new = {package}, {package}
    for _ in range(_STEPS):
        said = _run(["apt-cache", *own, "depends", "--important", *sorted(new)])
        new = {line.split()[-1] for line in said.splitlines() if "Depends: lib" in line} - packages
        packages |= new
        if not new:
            break
    _run(["apt-get", *own, "--quiet", "download", *sorted(packages - {"libc6"})], folder=scratch)
    for archive in scratch.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(archive), str(folder)])


def _runs(program: Path, version_flag: str) -> bool:
    try:
        return bool(_run([str(program), version_flag]))
    except NoProgram:
        return False


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoProgram(str(error)) from error
    if done.returncode:
        raise NoProgram(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
