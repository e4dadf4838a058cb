"""This machine's packages in the stead of downloaded ones: exactly those that a pip command names, at its versions.

Owns: which commands of the Dockerfile's are stood in for, and how. What that leaves open: whether the indexes have
these versions, and whether an install of them by pip would look the same. torch may be another build than the image's.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

from packaging.requirements import Requirement

from tests.deploy.image import Tree

_PYTHON = "/opt/venv/bin/python"


class Packages:
    """A step that does `pip install` from what is installed here; notes what it did."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, tree: Tree, command: str) -> bool:
        """See `image.Step`."""
        words = shlex.split(command)
        if words[:2] == ["apt-get", "install"]:
            for package in (word for word in words[2:] if not word.startswith("--")):
                tree.run(f"dpkg-query --show {package}")
        elif words[:4] == ["pip", "--python", _PYTHON, "install"] and "--no-index" not in words:
            self._install(tree, words[4:])
        elif words[:2] != ["apt-get", "update"] and not words[0].startswith("/opt/sbom/bin/"):
            return False
        self.done.append(command)
        return True

    def _install(self, tree: Tree, words: list[str]) -> None:
        to = f"/opt/venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        for name, file in pairwise(words):
            if name == "-r":
                for line in tree.path(file).read_text("utf-8").splitlines():
                    if pin := line.partition("#")[0].strip():
                        package, _, version = pin.partition("==")
                        _show(_installed(package, version), tree, to)
        for torch in (word for word in words if word.startswith("torch==")):
            for one in _with_needs(_installed(*torch.split("=="), exact=False)):
                _show(one, tree, to)


def _installed(name: str, version: str, *, exact: bool = True) -> Distribution:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise RuntimeError(f"{name}=={version} is not installed here") from None
    if exact and found.version != version:
        raise RuntimeError(f"the lock file says {name}=={version}, installed here is {found.version}")
    return found


def _with_needs(torch: Distribution) -> Iterator[Distribution]:
    """torch, and the CUDA libraries that such a build pins."""
    yield torch
    for text in torch.requires or ():
        one = Requirement(text)
        pinned = any(part.operator == "==" for part in one.specifier)
        if pinned and (one.marker is None or one.marker.evaluate({"extra": ""})):
            yield distribution(one.name)


def _show(package: Distribution, tree: Tree, to: str) -> None:
    """Bind all that the package has at its place in the tree; its commands get the tree's Python."""
    tops = set()
    for file in package.files or ():
        if file.parts[0] != "..":
            tops.add(file.parts[0])
        elif re.fullmatch(r"(\.\./)+bin/[^/]+", str(file)):
            _copy_command(Path(str(package.locate_file(file))), tree.path(f"/opt/venv/bin/{file.name}"))
    for top in tops - {"__pycache__"}:
        if not tree.path(f"{to}/{top}").exists():
            tree.show(Path(str(package.locate_file(top))), f"{to}/{top}")


def _copy_command(file: Path, to: Path) -> None:
    first, end, rest = file.read_bytes().partition(b"\n")
    own = first.startswith(b"#!") and b"python" in first
    to.write_bytes(b"#!" + _PYTHON.encode() + end + rest if own else first + end + rest)
    to.chmod(0o755)
