"""`promptmux collect`: give the disk space of deleted versions back."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer


def run(
    store: Annotated[
        str, typer.Option("--store", help="A prompt store: a folder, file:// or redis:// URL.", metavar="URL")
    ],
    grace: Annotated[
        float, typer.Option(min=0, help="Keep what was stored less than so many seconds ago.")
    ] = 3600.0,
) -> None:
    """Delete stored files that no version names any more; safe while servers run and others publish."""
    blobs, size = asyncio.run(_collect(store, grace))
    print(f"deleted {blobs} files, {size:,} bytes")


async def _collect(url: str, grace: float) -> tuple[int, int]:
    from promptmux.commands.stores import existing_store

    async with existing_store(url) as store:
        collected = await store.collect(grace=grace)
        return collected.blobs, collected.bytes
