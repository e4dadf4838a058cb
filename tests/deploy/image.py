"""The Dockerfile's steps carried out without an engine: each stage a tree, over this machine's Debian and Python.

Owns: what each instruction does to a tree and to the image's configuration, as far as our Dockerfile uses it. Must not
know: what a step installs; `steps` may stand in for single commands of it. Runs as root in a mount namespace of its
own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.deploy import mounts
from tests.deploy.dockerfile import Dockerfile, Ignored, Instruction, expand

Step = Callable[["Tree", str], bool]
"""Given a command of a RUN: do it in its stead and say so, or leave it alone."""

_BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_LEFT_OUT = ("test", "idlelib", "lib2to3", "tkinter", "turtledemo")
# What of this machine stands for Debian; of its other folders the usual ones are there, and empty.
_DEBIAN = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "var"}
_EMPTY = {"root", "home", "opt", "srv", "mnt", "media", "tmp", "run", "proc", "sys", "dev"}


@dataclass(slots=True)
class Tree:
    """A stage's root folder, and what an image of it would say."""

    root: Path
    layers: list[Path]  # the uppermost first
    environment: dict[str, str]
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    healthcheck: list[str] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    shown: list[tuple[Path, str]] = field(
        default_factory=list
    )  # what is bound in it, which layers do not have

    def show(self, source: Path, inside: str) -> None:
        """Have what is elsewhere at a place of the tree, and of all trees upon it."""
        mounts.bind(source, self.path(inside))
        self.shown.append((source, inside))

    def path(self, inside: str) -> Path:
        """Where a path of the image lies on this machine."""
        return self.root / os.path.normpath(f"{self.folder}/{inside}" if inside[0] != "/" else inside).lstrip(
            "/"
        )

    def run(self, command: str, **more: str) -> None:
        """A command of a RUN, as root in the tree. CalledProcessError, with what it said, when it fails."""
        done = subprocess.run(
            ["chroot", self.root, "/usr/bin/env", "-C", self.folder, "/bin/sh", "-e", "-c", command],
            env={**more, **self.arguments, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"RUN {command}: exit {done.returncode}\n{done.stdout}")


class Builder:
    """Builds stages of one Dockerfile, each once. `work` is an empty folder of memory."""

    def __init__(
        self, file: Dockerfile, context: Path, work: Path, *, steps: list[Step], environment: dict[str, str]
    ) -> None:
        self._file, self._context, self._work = file, context, work
        self._steps, self._environment = steps, environment
        self._ignored = Ignored(context / ".dockerignore")
        wheels = environment.get("PIP_FIND_LINKS", "")
        self._wheels = [Path(wheels)] if wheels.startswith("/") else []
        self._trees: dict[str, Tree] = {}

    def build(self, stage: str) -> Tree:
        """The tree of a stage, with all that it needs."""
        if stage not in self._trees:
            self._trees[stage] = self._build(stage)
        return self._trees[stage]

    def _build(self, name: str) -> Tree:
        stage = self._file.stages[name]
        base = expand(stage.base, self._file.arguments)
        if base in self._file.stages:
            below = self.build(base)
            tree = replace(
                below, layers=list(below.layers), environment=dict(below.environment), arguments={}
            )
            tree.labels, tree.volumes, tree.shown = dict(below.labels), list(below.volumes), []
            shown = below.shown
        else:
            tree, shown = Tree(Path(), self._base(), {"PATH": _BASE_PATH, "LANG": "C.UTF-8"}), []
        place = self._work / name
        mounts.overlay(tree.layers, place / "upper", place / "scratch", place / "root")
        tree.root, tree.layers = place / "root", [place / "upper", *tree.layers]
        for source, inside in shown:
            tree.show(source, inside)
        if base not in self._file.stages:
            tree.run("ldconfig")  # the linker's list still is this machine's
        for one in stage.instructions:
            try:
                self._carry_out(tree, one)
            except (OSError, RuntimeError, KeyError, ValueError) as error:
                raise RuntimeError(f"line {one.line}: {one.name}: {error}") from error
        return tree

    def _base(self) -> list[Path]:
        """What stands for the base image: this machine's Debian without its users and additions, with this Python."""
        top = self._work / "base"
        if not top.exists():
            for name in {*_EMPTY, "usr/local", "var/tmp"}:
                mounts.make_opaque(top / name)
            for folder in Path("/").iterdir():
                if folder.name not in _DEBIAN | _EMPTY:
                    mounts.make_absent(top / folder.name)
            for name in ("tmp", "var/tmp"):
                (top / name).chmod(0o1777)
            _copy_python(Path(sys.base_prefix), top / "usr" / "local")
        return [top, Path("/")]

    def _carry_out(self, tree: Tree, one: Instruction) -> None:
        variables = {**tree.arguments, **tree.environment}
        match one.name:
            case "ARG":
                name, _, default = one.value.partition("=")
                tree.arguments[name] = self._file.arguments.get(name, default)
            case "ENV":
                tree.environment |= one.pairs(variables)
            case "LABEL":
                tree.labels |= one.pairs(variables)
            case "WORKDIR":
                tree.folder = one.value
                tree.path(".").mkdir(parents=True, exist_ok=True)
            case "USER":
                tree.user = one.value
            case "VOLUME":
                tree.volumes += one.words()
            case "ENTRYPOINT":
                tree.entrypoint, tree.command = one.words(), []
            case "CMD":
                tree.command = one.words()
            case "HEALTHCHECK":
                words = one.value.removeprefix("CMD ")
                tree.healthcheck = None if words == "NONE" else replace(one, value=words).words()
            case "COPY":
                self._copy(tree, one)
            case "RUN":
                self._run(tree, one)
            case "EXPOSE":
                pass  # says something, does nothing
            case _:
                raise ValueError("not known here")

    def _copy(self, tree: Tree, one: Instruction) -> None:
        *sources, target = one.value.split()
        into = tree.path(target)
        for stage in one.flag("from"):
            (source,) = sources
            if into.exists() and any(into.iterdir()):
                raise ValueError(f"{target} has something already")
            # All of a folder that nobody else takes: it may as well be the same one.
            tree.show(self.build(stage).path(source), target)
            return
        for source in sources:
            here = self._context / source
            files = [here] if here.is_file() else sorted(file for file in here.rglob("*") if file.is_file())
            seen = [file for file in files if file.relative_to(self._context) not in self._ignored]
            if not seen:
                raise ValueError(f"{source}: no such file, or .dockerignore hides it")
            for file in seen:
                inside = (
                    file.relative_to(here) if here.is_dir() else file.name if target.endswith("/") else ""
                )
                (into / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, into / inside)
                (into / inside).chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)

    def _run(self, tree: Tree, one: Instruction) -> None:
        mounted = [tree.root / "proc", tree.root / "dev"]
        mounts.proc(mounted[0])
        mounts.devices(mounted[1])
        for folder in self._wheels:
            mounted.append(tree.path(str(folder)))
            mounts.bind(folder, mounted[-1])
        for flag in one.flag("mount"):
            given = dict(part.split("=", 1) for part in flag.split(","))
            if given.pop("type") != "bind" or given.keys() != {"from", "source", "target"}:
                raise ValueError(f"--mount={flag} is not known here")
            target = tree.path(given["target"])
            mounts.bind(self.build(given["from"]).path(given["source"]), target)
            mounted.append(target)
        for command in one.value.split(" && "):
            if not any(step(tree, command) for step in self._steps):
                tree.run(command, **self._environment)
        for at in reversed(mounted):
            mounts.unmount(at)
        for at in mounted[2:]:
            at.rmdir()


def _copy_python(prefix: Path, to: Path) -> None:
    """The interpreter with its standard library and pip; no other package."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library, pip = prefix / "lib" / version, prefix / "lib" / version / "site-packages" / "pip"
    if not pip.is_dir():
        raise RuntimeError(f"{prefix} has no pip of its own: it cannot stand for the base image's Python")

    def left_out(folder: str, names: list[str]) -> set[str]:
        if Path(folder) == library / "site-packages":
            return {name for name in names if not name.startswith("pip")}
        return {name for name in names if name in _LEFT_OUT or name.startswith("config-")}

    shutil.copytree(library, to / "lib" / version, ignore=left_out, symlinks=True)
    for file in (prefix / "lib").glob("libpython3*"):
        shutil.copy2(file, to / "lib" / file.name, follow_symlinks=False)
    binaries = to / "bin"
    binaries.mkdir()
    shutil.copy2(Path(sys.executable).resolve(), binaries / version)
    for name in ("python", "python3"):
        (binaries / name).symlink_to(version)
    (binaries / "pip").write_text(
        "#!/usr/local/bin/python3\nfrom pip._internal.cli.main import main\nraise SystemExit(main())\n"
    )
    (binaries / "pip").chmod(0o755)
