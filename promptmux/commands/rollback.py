"""`promptmux rollback`: point a task's alias back to a version that it still has."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from promptmux.commands.options import (
    DEFAULT_ADMIN,
    DEFAULT_TIMEOUT,
    AdminKey,
    AdminServer,
    Store,
    Timeout,
)
from promptmux.commands.output import tell_durability


def run(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    version: Annotated[
        str, typer.Argument(help="The version to serve: its SHA-256, or the first digits of it.")
    ],
    store: Store = None,
    server: AdminServer = DEFAULT_ADMIN,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "current",
    key: AdminKey = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Serve an earlier version again."""
    if store is not None:
        full, durable = asyncio.run(_in_store(store, task, version, alias))
    else:
        from client import AdminClient
        from promptmux.commands.aliases import find, standing

        with AdminClient(server, key=key, timeout=timeout) as admin:
            now = standing(admin.task(task), alias)
            full = find(version, now.versions)
            durable = admin.rollback(task, full, revision=now.revision, alias=alias).durable
    print(f"{task}: {alias} leads to {full}")
    tell_durability(durable)


async def _in_store(url: str, task: str, version: str, alias: str) -> tuple[str, bool]:
    from prompt_store import Target
    from promptmux.commands.aliases import find, standing
    from promptmux.commands.stores import existing_store

    async with existing_store(url) as store:
        now = standing(await store.task(task), alias)
        full = find(version, now.versions)
        moved = await store.set_alias(
            task, alias, [Target(full)], expected_revision=now.revision, actor="rollback"
        )
        return full, moved.durability.durable
