"""`promptmux promote`: give one of an alias's versions all of its requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from promptmux.commands.aliases import Shares


def run(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    version: Annotated[
        str | None,
        typer.Option(
            help="One of the alias's versions: its SHA-256, or the first digits. Without: of two, the one added last."
        ),
    ] = None,
    store: Store = None,
    server: AdminServer = DEFAULT_ADMIN,
    alias: Annotated[str, typer.Option(help="The alias that is split.")] = "current",
    key: AdminKey = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """End a split: one version serves alone."""
    if store is not None:
        full, durable = asyncio.run(_in_store(store, task, version, alias))
    else:
        full, durable = _on_server(server, key, timeout, task, version, alias)
    print(f"{task}: {alias} leads to {full}")
    tell_durability(durable)


async def _in_store(url: str, task: str, version: str | None, alias: str) -> tuple[str, bool]:
    from prompt_store import Target
    from promptmux.commands.aliases import standing
    from promptmux.commands.stores import existing_store

    async with existing_store(url) as store:
        now = standing(await store.task(task), alias)
        full = chosen(now.shares, version)
        moved = await store.set_alias(
            task, alias, [Target(full)], expected_revision=now.revision, actor="promote"
        )
        return full, moved.durability.durable


def _on_server(
    url: str, key: str | None, timeout: float, task: str, version: str | None, alias: str
) -> tuple[str, bool]:
    from client import AdminClient
    from promptmux.commands.aliases import standing

    with AdminClient(url, key=key, timeout=timeout) as admin:
        now = standing(admin.task(task), alias)
        full = chosen(now.shares, version)
        return full, admin.promote(task, full, revision=now.revision, alias=alias).durable


def chosen(shares: Shares, version: str | None) -> str:
    """The version to promote: the one that is named, or of two the one that was added last."""
    from promptmux.commands.aliases import find

    versions = [one for one, _ in shares]
    if version is not None:
        return find(version, versions, hint="--version")
    if len(versions) != 2:
        led = "one version" if len(versions) == 1 else f"{len(versions)} versions"
        raise typer.BadParameter(f"it leads to {led}: name the one to promote", param_hint="--version")
    return versions[-1]
