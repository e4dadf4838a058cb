"""`promptmux tasks`: what a store or a running server holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import typer

from promptmux.commands.options import (
    DEFAULT_ADMIN,
    DEFAULT_TIMEOUT,
    AdminKey,
    AdminServer,
    Store,
    Timeout,
)


def run(
    task: Annotated[str | None, typer.Argument(help="Show one task with its versions.")] = None,
    store: Store = None,
    server: AdminServer = DEFAULT_ADMIN,
    key: AdminKey = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """List the tasks with their current versions, or one task with all its versions."""
    from rich.table import Table

    from promptmux.commands.aliases import percent
    from promptmux.commands.output import console

    records = (
        asyncio.run(_from_store(store, task))
        if store is not None
        else _from_server(server, key, timeout, task)
    )
    table = Table(box=None, header_style="bold")
    if task is None:
        for column in ("task", "current", "other aliases", "versions", "method", "labels"):
            table.add_column(column)
        for record in records:
            current = record.aliases.get("current", ())
            info = next((v for v in record.versions if current and v.version == current[0][0]), None)
            others = ", ".join(f"{a} → {_led(t)}" for a, t in record.aliases.items() if a != "current")
            method, labels = (info.method, str(info.labels)) if info else ("", "")
            table.add_row(
                record.task_id, _led(current) or "none", others, str(len(record.versions)), method, labels
            )
    else:
        for column in ("version", "aliases", "published", "bytes", "method", "labels"):
            table.add_column(column, overflow="fold")
        for record in records:
            for v in record.versions:
                leading = ", ".join(
                    name if len(targets) == 1 else f"{name} ({percent(weight, targets)})"
                    for name, targets in record.aliases.items()
                    for version, weight in targets
                    if version == v.version
                )
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(v.published_at))
                table.add_row(v.version, leading, when, str(v.size), v.method, str(v.labels))
    console().print(table)
    if not records:
        console().print("no tasks yet: train one with `promptmux train`, or publish a prompt file")


class _Version(Protocol):
    """What a store and a server both say of a version."""

    @property
    def version(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def published_at(self) -> float: ...
    @property
    def method(self) -> str: ...
    @property
    def labels(self) -> int: ...


@dataclass(frozen=True)
class _Record:
    task_id: str
    aliases: Mapping[str, Sequence[tuple[str, int]]]  # name → (version, weight), the heaviest first
    versions: Sequence[_Version]


def _led(targets: Sequence[tuple[str, int]]) -> str:
    if len(targets) == 1:
        return targets[0][0][:12]
    from promptmux.commands.aliases import percent

    return " + ".join(f"{version[:12]} ({percent(weight, targets)})" for version, weight in targets)


def _by_weight(targets: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(targets, key=lambda target: -target[1])


def _from_server(url: str, key: str | None, timeout: float, task: str | None) -> list[_Record]:
    from client import AdminClient

    with AdminClient(url, key=key, timeout=timeout) as admin:
        found = list(admin.tasks()) if task is None else [admin.task(task)]
    return [
        _Record(t.task_id, {name: _by_weight(a.targets) for name, a in t.aliases.items()}, t.versions)
        for t in found
    ]


async def _from_store(url: str, task: str | None) -> list[_Record]:
    from prompt_store import TaskRecord
    from promptmux.commands.stores import existing_store

    found: list[TaskRecord] = []
    async with existing_store(url) as store:
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
    return [
        _Record(
            t.task_id,
            {name: _by_weight((x.version, x.weight) for x in a.targets) for name, a in t.aliases.items()},
            t.versions,
        )
        for t in found
    ]
