"""A Dockerfile as its instructions: stages, flags, variables, and which files of the folder a build may see.

Owns: reading. Must not know: what any instruction does. An instruction that is not known is an error, so that nothing
in the file is passed over.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_KNOWN = {
    *("ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "LABEL"),
    *("VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
}
_FLAG = re.compile(r"--([a-z-]+)=(\S+)\s*")
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, with its flags taken off."""

    name: str
    value: str
    line: int
    flags: tuple[tuple[str, str], ...] = ()

    def flag(self, name: str) -> list[str]:
        """The values of a flag, in their order."""
        return [value for key, value in self.flags if key == name]

    def words(self) -> list[str]:
        """The exec form, which is JSON, or the words of a plain one."""
        if self.value.startswith("["):
            words: list[str] = json.loads(self.value)
            return words
        return self.value.split()

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """`KEY=value KEY="other value"`, with variables filled in."""
        given = (word.partition("=") for word in shlex.split(expand(self.value, variables)))
        return {key: value for key, _, value in given}


@dataclass(slots=True)
class Stage:
    """What stands from one FROM to the next; `base` is as written, with variables."""

    name: str
    base: str
    line: int
    instructions: list[Instruction] = field(default_factory=list)

    def of(self, name: str) -> list[Instruction]:
        """The instructions of one kind."""
        return [one for one in self.instructions if one.name == name]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """The global arguments' defaults, and the stages by name."""

    arguments: dict[str, str]
    stages: dict[str, Stage]


def read_dockerfile(path: Path) -> Dockerfile:
    """Read it whole. ValueError for what is no Dockerfile of the kind that we write."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for one in _instructions(path.read_text("utf-8")):
        if one.name == "FROM":
            base, word, name = one.value.split()
            if word.upper() != "AS" or name in stages:
                raise ValueError(f"line {one.line}: a stage needs a name of its own")
            stage = stages[name] = Stage(name, base, one.line)
        elif stage is not None:
            stage.instructions.append(one)
        elif one.name == "ARG":
            key, _, value = one.value.partition("=")
            arguments[key] = value
        else:
            raise ValueError(f"line {one.line}: {one.name} before the first FROM")
    return Dockerfile(arguments, stages)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Fill in `$NAME` and `${NAME}`; an unknown one is a KeyError here, where an engine would say nothing."""
    return _VARIABLE.sub(lambda found: variables[found[1] or found[2]], text)


def _instructions(text: str) -> Iterable[Instruction]:
    started, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not parts):
            continue
        started = started or number
        parts.append(line.rstrip().removesuffix("\\"))
        if line.rstrip().endswith("\\"):
            continue
        yield _instruction(" ".join(part.strip() for part in parts), started)
        started, parts = 0, []
    if parts:
        raise ValueError(f"line {started}: goes on after the end of the file")


def _instruction(text: str, line: int) -> Instruction:
    name, _, value = text.partition(" ")
    if name not in _KNOWN:
        raise ValueError(f"line {line}: {name} is not known here")
    flags = []
    while found := _FLAG.match(value):
        flags.append((found[1], found[2]))
        value = value[found.end() :]
    return Instruction(name, value.strip(), line, tuple(flags))


class Ignored:
    """A `.dockerignore`: which files a build does not see.

    The last pattern that matches a file, or a folder above it, wins.
    """

    def __init__(self, path: Path) -> None:
        lines = (line.strip() for line in path.read_text("utf-8").splitlines())
        self._patterns = [
            (line.startswith("!"), _pattern(line.removeprefix("!").strip("/")))
            for line in lines
            if line and not line.startswith("#")
        ]

    def __contains__(self, file: Path) -> bool:
        names = [str(file), *(str(folder) for folder in file.parents if folder != Path("."))]
        ignored = False
        for seen, pattern in self._patterns:
            if any(pattern.fullmatch(name) for name in names):
                ignored = not seen
        return ignored


def _pattern(text: str) -> re.Pattern[str]:
    """As Go's filepath.Match, with `**` for any number of folders."""
    translated = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", text):
        translated += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part) or (
            part if part.startswith("[") else re.escape(part)
        )
    return re.compile(translated)
