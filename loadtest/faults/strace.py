"""Where strace comes from: PATH, or Debian's package, fetched and unpacked without root.

Owns: finding one that works, and the cache. Must not know: what is traced.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class NoStrace(RuntimeError):
    """There is no strace here that works, and none could be fetched; the message says what was tried."""


def find_strace() -> Sequence[str]:
    """How to call a strace that works here.

    Raises:
        NoStrace: there is none, or this machine does not allow tracing.

    """
    found = shutil.which("strace")
    call = [found] if found else fetched_strace()
    try:
        subprocess.run(
            [*call, "-f", "-e", "trace=fsync", "true"], check=True, capture_output=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        raise NoStrace(
            f"strace does not work here: {said.decode(errors='replace').strip()[-300:]}"
        ) from error
    return call


def fetched_strace() -> list[str]:
    """The strace of Debian's (or Ubuntu's) package, kept in the cache; how to call it."""
    root = os.environ.get("XDG_CACHE_HOME")
    kept = (Path(root) if root else Path("~/.cache").expanduser()) / "promptmux" / "strace"
    if not kept.exists():
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                _fetch(Path(scratch)).rename(kept)
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip()[-300:]
            raise NoStrace(
                f"no strace; install one (apt install strace); {error.cmd[0]} failed: {said}"
            ) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            if not kept.exists():  # else another process was quicker
                raise NoStrace(f"no strace; install one (apt install strace): {error}") from error
    libraries = ":".join(str(folder) for folder in kept.glob("usr/lib/*-linux-gnu*"))
    # Only for strace: what it runs is to find the libraries that it always finds.
    own = os.environ.get("LD_LIBRARY_PATH")
    program = [
        str(kept / "usr" / "bin" / "strace"),
        "-E",
        "LD_LIBRARY_PATH" + ("" if own is None else f"={own}"),
    ]
    return ["env", f"LD_LIBRARY_PATH={libraries}", *program]


def _fetch(scratch: Path) -> Path:
    # Own package lists: those of the system are missing in images and stale elsewhere.
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    own = [f"-oDir::State::lists={scratch}/lists", f"-oDir::Cache={scratch}/cache", "-oAPT::Sandbox::User="]
    # What libunwind8 needs in turn, apt itself needs too.
    for command in (["update"], ["download", "strace", "libunwind8"]):
        subprocess.run(
            ["apt-get", *own, "--quiet", *command], cwd=scratch, check=True, capture_output=True, timeout=180
        )
    unpacked = scratch / "unpacked"
    for package in scratch.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True, capture_output=True)
    return unpacked
