"""`promptmux rollback`: point a task's alias back to a version that it still has."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from promptmux.commands.options import DEFAULT_ADMIN, AdminKey, AdminServer, Store


def run(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    version: Annotated[
        str, typer.Argument(help="The version to serve: its SHA-256, or the first digits of it.")
    ],
    store: Store = None,
    server: AdminServer = DEFAULT_ADMIN,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "current",
    key: AdminKey = None,
) -> None:
    """Serve an earlier version again."""
    if store is not None:
        full = asyncio.run(_in_store(store, task, version, alias))
    else:
        from client import AdminClient

        with AdminClient(server, key=key) as admin:
            record = admin.task(task)
            full = _find(version, [v.version for v in record.versions])
            known = record.aliases.get(alias)
            if known is None:
                raise _no_alias(task, alias)
            admin.rollback(task, full, revision=known.revision, alias=alias)
    print(f"{task}: {alias} leads to {full}")


async def _in_store(url: str, task: str, version: str, alias: str) -> str:
    from prompt_store import Target
    from promptmux.commands.stores import existing_store

    async with existing_store(url) as store:
        record = await store.task(task)
        full = _find(version, [v.version for v in record.versions])
        known = record.aliases.get(alias)
        if known is None:
            raise _no_alias(task, alias)
        await store.set_alias(task, alias, [Target(full)], expected_revision=known.revision, actor="rollback")
        return full


def _no_alias(task: str, alias: str) -> typer.BadParameter:
    return typer.BadParameter(f"{task} has no alias {alias}", param_hint="--alias")


def _find(prefix: str, versions: list[str]) -> str:
    matching = [v for v in versions if v.startswith(prefix)]
    if len(matching) != 1:
        found = "no version" if not matching else f"{len(matching)} versions"
        raise typer.BadParameter(f"{found} of this task begin with {prefix}", param_hint="VERSION")
    return matching[0]
