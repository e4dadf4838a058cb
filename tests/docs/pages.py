"""The documentation as these tests read it: its pages, and the fenced blocks on them. Knows nothing of running them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = "sh"  # the one language of a block of commands
OTHER_SHELLS = {"bash", "shell", "console", "zsh", "terminal", "shell-session"}
_FENCE = re.compile(r"^\s*(`{3,}|~{3,})\s*(\S*)\s*(.*?)\s*$")
_NOT_RUN = re.compile(r"not-run:\s*(.*?)\s*(?:-->)?$")


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is that of its fence, from 1; `not_run` says why it is not run, None where it is.

    Marked by ```` ```sh not-run: needs a cluster ````, or by a comment `<!-- not-run: needs a cluster -->` before it.
    """

    line: int
    language: str
    text: str
    not_run: str | None


def markdown_files() -> list[Path]:
    """Every Markdown file of the project, whatever folder it is in."""
    hidden = {".venv", "node_modules", "var", "runs", ".pytest_cache"}
    return sorted(
        file
        for file in ROOT.rglob("*.md")
        if not hidden & set(file.relative_to(ROOT).parts) and "loadtest/peers" not in str(file)
    )


def command_pages() -> list[Path]:
    """The pages whose commands are run."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    fence, at, language, mark, said = "", 0, "", None, ""
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        if not fence and match:
            fence, at, language = match[1], number, match[2]
            mark, lines = _NOT_RUN.search(match[3]) or _NOT_RUN.search(said), []
        elif fence and match and match[1].startswith(fence) and not match[2]:
            found.append(Block(at, language, "\n".join(lines) + "\n", mark[1] if mark else None))
            fence, said = "", ""
        elif fence:
            lines.append(line)
        elif line.strip():
            said = line if line.lstrip().startswith("<!--") else ""
    return found


def sentences(text: str) -> str:
    """The page without its fenced blocks."""
    kept, fence = [], ""
    for line in text.splitlines():
        match = _FENCE.match(line)
        if not fence and match:
            fence = match[1]
        elif fence and match and match[1].startswith(fence) and not match[2]:
            fence = ""
        elif not fence:
            kept.append(line)
    return "\n".join(kept)


def unfenced(text: str) -> str:
    """The page without its fenced blocks and inline code, in which brackets are no links."""
    return "\n".join(re.sub(r"`[^`]*`", "", line) for line in sentences(text).splitlines())
