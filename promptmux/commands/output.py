"""Where subcommands print their tables."""

from __future__ import annotations

import sys

from rich.console import Console

_PIPE_WIDTH = 250


def console() -> Console:
    """As wide as the terminal; a pipe gets whole lines, for a digest cut in two is of no use to the next program."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
