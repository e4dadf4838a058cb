"""`promptmux canary`: give a version a part of a task's requests, or show how the parts are doing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
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
    from client import Traffic
    from promptmux.commands.aliases import Shares


def run(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    version: Annotated[
        str | None,
        typer.Option(
            help="The version that gets a part: its SHA-256, or the first digits. Without: show the parts."
        ),
    ] = None,
    weight: Annotated[int, typer.Option(min=1, max=99, help="Its part of the requests in percent.")] = 5,
    store: Store = None,
    server: AdminServer = DEFAULT_ADMIN,
    alias: Annotated[str, typer.Option(help="The alias to split.")] = "current",
    key: AdminKey = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Split a task's requests between versions, or change the parts; `promptmux promote` ends it."""
    if store is not None:
        asyncio.run(_in_store(store, task, version, weight, alias))
    else:
        _on_server(server, key, timeout, task, version, weight, alias)


async def _in_store(url: str, task: str, version: str | None, weight: int, alias: str) -> None:
    from prompt_store import Target
    from promptmux.commands.aliases import find, standing
    from promptmux.commands.stores import existing_store

    async with existing_store(url) as store:
        now = standing(await store.task(task), alias)
        shares = now.shares
        if version is not None:
            shares = split(shares, find(version, now.versions, hint="--version"), weight)
            targets = [Target(*share) for share in shares]
            moved = await store.set_alias(
                task, alias, targets, expected_revision=now.revision, actor="canary"
            )
            tell_durability(moved.durability.durable)
    _show(shares, {}, {})


def _on_server(
    url: str, key: str | None, timeout: float, task: str, version: str | None, weight: int, alias: str
) -> None:
    from client import AdminClient
    from promptmux.commands.aliases import find, standing

    with AdminClient(url, key=key, timeout=timeout) as admin:
        known = admin.task(task)
        now = standing(known, alias)
        shares = now.shares
        if version is not None:
            shares = split(shares, find(version, now.versions, hint="--version"), weight)
            tell_durability(admin.set_split(task, alias, shares, revision=now.revision).durable)
            known = admin.task(task)
    shown = known.aliases[alias]
    _show(shown.targets, shown.traffic, shown.quarantined)


def split(shares: Shares, version: str, part: int) -> Shares:
    """`part` percent for the version, the rest for the others as they stand to each other."""
    others = [(other, weight) for other, weight in shares if other != version]
    if not others:
        raise typer.BadParameter("it has all requests already", param_hint="--version")
    total = sum(weight for _, weight in others)
    scaled = [(other, weight * (100 - part)) for other, weight in others] + [(version, part * total)]
    from prompt_store.store import MAX_WEIGHT

    divisor = math.gcd(*(weight for _, weight in scaled))
    # Weights end at a million: what is larger loses digits, not its place.
    divisor = max(divisor, math.ceil(max(weight for _, weight in scaled) / MAX_WEIGHT))
    return [(other, max(1, weight // divisor)) for other, weight in scaled]


def _show(shares: Shares, traffic: Mapping[str, Traffic], quarantined: Mapping[str, str]) -> None:
    from rich.table import Table

    from promptmux.commands.aliases import percent
    from promptmux.commands.output import console

    table = Table(box=None, header_style="bold")
    for column in ("version", "part", "requests", "errors", "mean score", ""):
        table.add_column(column, overflow="fold")
    for version, weight in shares:
        seen = traffic.get(version)
        counts = ("", "", "")
        if seen is not None:
            errors = ", ".join(f"{count} {code}" for code, count in sorted(seen.errors.items())) or "0"
            mean = "" if seen.mean_score is None else f"{seen.mean_score:.3f}"
            counts = (str(seen.requests), errors, mean)
        out = f"out: {quarantined[version]}" if version in quarantined else ""
        table.add_row(version, percent(weight, shares), *counts, out)
    console().print(table)
