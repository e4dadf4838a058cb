"""Prompt stores for subcommands that only look: a misspelt path is an error, not a new store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import typer

from prompt_store import PromptStore, UnknownAlias, open_store


@asynccontextmanager
async def existing_store(url: str) -> AsyncIterator[PromptStore]:
    """Open a store that is there, and close it at the end."""
    _refuse_absent(url)
    store = open_store(url)
    try:
        yield store
    finally:
        await store.aclose()


async def fetch(store: PromptStore, task: str, version: str = "current") -> bytes:
    """The prompt file that an alias leads most requests to, or a version itself. UnknownAlias if it is neither."""
    record = await store.task(task)
    if any(v.version == version for v in record.versions):
        return await store.get(task, version)
    if version not in record.aliases:
        raise UnknownAlias(f"task {task} has no alias or version {version}")
    heaviest = max(record.aliases[version].targets, key=lambda target: target.weight)
    return await store.get(task, heaviest.version)


def _refuse_absent(url: str) -> None:
    path = url.removeprefix("file://")
    if "://" not in path and not Path(path).is_dir():
        raise typer.BadParameter(f"there is no store in {path}", param_hint="--store")
