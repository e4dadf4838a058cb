"""What subcommands print alike: tables, and what a store promised."""

from __future__ import annotations

import sys

from rich.console import Console

_PIPE_WIDTH = 250


def console() -> Console:
    """As wide as the terminal; a pipe gets whole lines, for a digest cut in two is of no use to the next program."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def tell_durability(durable: bool) -> None:
    """Say on standard error where the store did not promise that what was written outlives its machine."""
    if not durable:
        note = "note: the store did not promise that this outlives a power cut; promptmux doctor says why"
        print(note, file=sys.stderr)
