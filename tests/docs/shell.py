"""A block of commands read as a shell would split it. Knows nothing of what the commands do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

_KEYWORDS = {"until", "while", "do", "done", "if", "then", "else", "fi", "!", "{", "}"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_HERE = re.compile(r"<<'?(\w+)'?\n.*?\n\1\n", re.S)
_INNER = re.compile(r"\$\(([^()]*)\)")
ANSWER = "ANSWER"  # the word in place of what a command in $(…) would say


def commands(text: str) -> list[list[str]]:
    """Every simple command of a block as its words: those in `$(…)` first, then the others in their order.

    Redirections, comments, keywords and assignments before a command are left out.
    """
    text = _HERE.sub("\n", text).replace("\\\n", " ")
    found: list[list[str]] = []
    while match := _INNER.search(text):
        found += _simple(match[1])
        text = text[: match.start()] + ANSWER + text[match.end() :]
    return found + list(_simple(text))


def _simple(text: str) -> Iterator[list[str]]:
    """The commands of a text without `$(…)`."""
    waiting = ""
    for line in text.splitlines():
        waiting += line + "\n"
        lexer = shlex.shlex(waiting, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:
            continue  # a quotation goes on in the next line
        waiting = ""
        yield from _split(words)
    if waiting.strip():
        raise ValueError(f"a quotation has no end: {waiting}")


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    redirected = False
    for word in [*words, ";"]:
        if word and set(word) <= set("();<>|&"):
            redirected = word.strip("&") in ("<", ">", ">>")
            if redirected and command and command[-1].isdigit():
                command.pop()  # the 2 of `2>`
            if not redirected and command:
                yield command
                command = []
        elif redirected:
            redirected = False
        elif command or not (word in _KEYWORDS or _ASSIGNMENT.match(word)):
            command.append(word)
