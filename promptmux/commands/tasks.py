"""`promptmux tasks`: what a store or a running server holds."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from promptmux.commands.options import DEFAULT_ADMIN, AdminKey, AdminServer, Store


def run(
    task: Annotated[str | None, typer.Argument(help="Show one task with its versions.")] = None,
    store: Store = None,
    server: AdminServer = DEFAULT_ADMIN,
    key: AdminKey = None,
) -> None:
    """List the tasks with their current versions, or one task with all its versions."""
    from rich.table import Table

    from promptmux.commands.output import console

    records = asyncio.run(_from_store(store, task)) if store is not None else _from_server(server, key, task)
    table = Table(box=None, header_style="bold")
    if task is None:
        for column in ("task", "current", "other aliases", "versions", "method", "labels"):
            table.add_column(column)
        for name, aliases, versions in records:
            current = aliases.get("current", "")
            info = next((v for v in versions if v[0] == current), None)
            others = ", ".join(f"{a} → {v[:12]}" for a, v in aliases.items() if a != "current")
            method, labels = (info[3], str(info[4])) if info else ("", "")
            table.add_row(name, current[:12] or "none", others, str(len(versions)), method, labels)
    else:
        for column in ("version", "aliases", "published", "bytes", "method", "labels"):
            table.add_column(column, overflow="fold")
        for _, aliases, versions in records:
            for version, size, published, method, count in versions:
                leading = ", ".join(a for a, v in aliases.items() if v == version)
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(published))
                table.add_row(version, leading, when, str(size), method, str(count))
    console().print(table)
    if not records:
        console().print("no tasks yet: train one with `promptmux train`, or publish a prompt file")


_Version = tuple[str, int, float, str, int]
_Record = tuple[str, dict[str, str], list[_Version]]


def _from_server(url: str, key: str | None, task: str | None) -> list[_Record]:
    from client import AdminClient

    with AdminClient(url, key=key) as admin:
        found = list(admin.tasks()) if task is None else [admin.task(task)]
    return [
        (
            t.task_id,
            {name: "+".join(version for version, _ in a.targets) for name, a in t.aliases.items()},
            [(v.version, v.size, v.published_at, v.method, v.labels) for v in t.versions],
        )
        for t in found
    ]


async def _from_store(url: str, task: str | None) -> list[_Record]:
    from prompt_store import TaskRecord, open_store

    store = open_store(url)
    try:
        found: list[TaskRecord] = []
        if task is not None:
            found.append(await store.task(task))
        else:
            after: str | None = None
            while True:
                page = await store.list(after=after, limit=500)
                found.extend(page.tasks)
                after = page.next
                if after is None:
                    break
    finally:
        await store.aclose()
    return [
        (
            t.task_id,
            {name: "+".join(target.version for target in a.targets) for name, a in t.aliases.items()},
            [(v.version, v.size, v.published_at, v.method, v.labels) for v in t.versions],
        )
        for t in found
    ]
