"""Programs that a machine may not have: fetched without root, out of Debian's packages say, and kept in a cache.

Owns: where they are kept, what a package needs, and how a program finds its libraries there. Must not know: what a
program is for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
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


def find_program(name: str, *, packages: Sequence[str], inside: str, version_flag: str) -> Path:
    """The program on PATH or among the system's own, else out of Debian's packages, where it lies at `inside`.

    Raises:
        NoProgram: neither works.

    """
    found = on_path(name, version_flag)
    if found is not None:
        return found
    try:
        return from_debian(name, packages=packages, inside=inside, version_flag=version_flag)
    except NoProgram as error:
        package = packages[0]
        raise NoProgram(
            f"no {name} on PATH (apt install {package}, brew install {package}), and {error}"
        ) from error


def on_path(name: str, version_flag: str) -> Path | None:
    """The program on PATH or among the system's own, if it runs."""
    # Servers are in sbin, which is not on everybody's PATH.
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(name, path=places)
    return Path(found) if found is not None and _runs(Path(found), version_flag) else None


def from_debian(name: str, *, packages: Sequence[str], inside: str, version_flag: str) -> Path:
    """The program out of Debian's packages, fetched unless the cache has one that runs.

    Raises:
        NoProgram: with what failed.

    """

    def make(folder: Path, scratch: Path) -> None:
        unpack(packages, folder, scratch)
        (folder / name).write_text(_WRAPPER.format(program=inside))

    try:
        return kept(name, "debian", version_flag, make)
    except NoProgram as error:
        raise NoProgram(f"Debian's {packages[0]}: {error}") from error


def kept(name: str, origin: str, version_flag: str, make: Callable[[Path, Path], None]) -> Path:
    """The program in the cache, made by `make(folder, scratch)` if there is none that runs.

    Raises:
        NoProgram: with what failed.

    """
    root = os.environ.get("XDG_CACHE_HOME")
    place = (Path(root) if root else Path("~/.cache").expanduser()) / "promptmux" / name / origin
    if _runs(place / name, version_flag):
        return place / name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            made, rest = Path(scratch) / "made", Path(scratch) / "rest"
            made.mkdir()
            rest.mkdir()
            make(made, rest)
            (made / name).chmod(0o755)
            run([str(made / name), version_flag])
            if not _runs(place / name, version_flag):  # else another process was quicker
                shutil.rmtree(place, ignore_errors=True)
                made.rename(place)
    except (NoProgram, OSError) as error:
        if not _runs(place / name, version_flag):
            raise NoProgram(str(error)) from error
    return place / name


def unpack(packages: Sequence[str], folder: Path, scratch: Path) -> None:
    """Put Debian's (or Ubuntu's) packages and the libraries that they need into `folder`, without root.

    Raises:
        NoProgram: with what failed.

    """
    # Own package lists: those of the system are missing in images and stale elsewhere.
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    own = [f"-oDir::State::lists={scratch}/lists", f"-oDir::Cache={scratch}/cache"]
    own.append("-oAPT::Sandbox::User=")  # as who we are: _apt could not write here
    run(["apt-get", *own, "--quiet", "update"])
    wanted, new = set(packages), set(packages)
    for _ in range(_STEPS):
        said = run(["apt-cache", *own, "depends", "--important", *sorted(new)])
        new = {line.split()[-1] for line in said.splitlines() if "Depends: lib" in line} - wanted
        wanted |= new
        if not new:
            break
    run(["apt-get", *own, "--quiet", "download", *sorted(wanted - {"libc6"})], folder=scratch)
    for archive in scratch.glob("*.deb"):
        run(["dpkg-deb", "-x", str(archive), str(folder)])


def _runs(program: Path, version_flag: str) -> bool:
    try:
        return bool(run([str(program), version_flag]))
    except NoProgram:
        return False


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """What a command writes; NoProgram when it is not there, hangs or fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoProgram(str(error)) from error
    if done.returncode:
        raise NoProgram(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
