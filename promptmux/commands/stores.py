"""Prompt stores for subcommands that only look: a misspelt path is an error, not a new store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import typer

from prompt_store import PromptStore, open_store


@asynccontextmanager
async def existing_store(url: str) -> AsyncIterator[PromptStore]:
    """Open a store that is there, and close it at the end."""
    _refuse_absent(url)
    store = open_store(url)
    try:
        yield store
    finally:
        await store.aclose()


def _refuse_absent(url: str) -> None:
    path = url.removeprefix("file://")
    if "://" not in path and not Path(path).is_dir():
        raise typer.BadParameter(f"there is no store in {path}", param_hint="--store")
