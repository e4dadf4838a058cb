"""A worker's side of the conversation: JSON lines on standard input and output. Standard library only.

A peer's worker is a module beside this one, started as `python -m loadtest.bench.peers.<name>` by the peer's own
Python. It loads, then calls `serve` with its versions and one function for each thing it can be asked to do.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO


def answers() -> TextIO:
    """Take standard output for answers alone: whatever libraries print goes to standard error from here on.

    Call it before anything is imported that may print.
    """
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept


def versions(*names: str) -> dict[str, str]:
    """The installed versions of distributions."""
    return {name: importlib.metadata.version(name) for name in names}


def serve(
    out: TextIO, ready: Mapping[str, str], functions: Mapping[str, Callable[..., dict[str, Any]]]
) -> None:
    """Answer requests until the input ends. An exception is an answer too: it says what went wrong."""

    def say(answer: Mapping[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    say({"ready": dict(ready)})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(functions[request.pop("do")](**request))
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            say({"error": f"{type(error).__name__}: {str(error)[:500]}"})
