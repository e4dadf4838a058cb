"""Where strace comes from: PATH, or Debian's package, fetched and unpacked without root.

Owns: finding one that works, and the cache. Must not know: what is traced.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from loadtest.faults.fetched_program import NoProgram, from_debian


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
    try:
        wrapper = from_debian("strace", packages=("strace",), inside="usr/bin/strace", version_flag="-V")
    except NoProgram as error:
        raise NoStrace(f"no strace; install one (apt install strace): {error}") from error
    place = wrapper.parent
    libraries = ":".join(str(folder) for folder in place.glob("usr/lib/*-linux-gnu*"))
    # Only for strace: what it runs is to find the libraries that it always finds.
    own = os.environ.get("LD_LIBRARY_PATH")
    program = [
        str(place / "usr" / "bin" / "strace"),
        "-E",
        "LD_LIBRARY_PATH" + ("" if own is None else f"={own}"),
    ]
    return ["env", f"LD_LIBRARY_PATH={libraries}", *program]
