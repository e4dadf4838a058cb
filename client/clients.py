"""Owns the four clients: which operations each has. Knows neither how these are made nor how they are sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from client import admin
from client import classify as public
from client.admin import Receipt, TaskInfo
from client.transport import AsyncConnection, Connection, awaiting, blocking


class Client(Connection):
    """Asks a server for labels; the public port, such as http://127.0.0.1:8000."""

    classify = blocking(public.classify)
    tasks = blocking(public.tasks)
    is_ready = blocking(public.is_ready)


class AsyncClient(AsyncConnection):
    """`Client` for asyncio."""

    classify = awaiting(public.classify)
    tasks = awaiting(public.tasks)
    is_ready = awaiting(public.is_ready)


class AdminClient(Connection):
    """Operates a server through its admin port, such as http://127.0.0.1:8001."""

    task = blocking(admin.task)
    history = blocking(admin.history)
    get_version = blocking(admin.get_version)
    put_version = blocking(admin.put_version)
    set_alias = blocking(admin.set_alias)
    set_split = blocking(admin.set_split)
    promote = blocking(admin.promote)
    rollback = blocking(admin.rollback)
    delete_alias = blocking(admin.delete_alias)
    delete_version = blocking(admin.delete_version)
    delete_task = blocking(admin.delete_task)

    def tasks(self, *, timeout: float | None = None) -> Iterator[TaskInfo]:
        """Every task, page by page; `timeout` is for each page."""
        after: str | None = None
        while True:
            page = self._run(admin.task_page(after, timeout=timeout))
            yield from page.tasks
            after = page.next
            if after is None:
                return

    def move_alias(self, task_id: str, alias: str, version: str, *, timeout: float | None = None) -> Receipt:
        """Point an alias to a version, whatever it pointed to when this was called.

        Raises ApiError 412 when two writers move it at the same moment and the other one wins.
        """
        deadline = self._deadline(timeout)
        revision = self._run(admin.alias_revision(task_id, alias), deadline)
        return self._run(admin.set_alias(task_id, alias, version, revision=revision), deadline)


class AsyncAdminClient(AsyncConnection):
    """`AdminClient` for asyncio."""

    task = awaiting(admin.task)
    history = awaiting(admin.history)
    get_version = awaiting(admin.get_version)
    put_version = awaiting(admin.put_version)
    set_alias = awaiting(admin.set_alias)
    set_split = awaiting(admin.set_split)
    promote = awaiting(admin.promote)
    rollback = awaiting(admin.rollback)
    delete_alias = awaiting(admin.delete_alias)
    delete_version = awaiting(admin.delete_version)
    delete_task = awaiting(admin.delete_task)

    async def tasks(self, *, timeout: float | None = None) -> AsyncIterator[TaskInfo]:  # noqa: ASYNC109 — with retries
        """Every task, page by page; `timeout` is for each page."""
        after: str | None = None
        while True:
            page = await self._run(admin.task_page(after, timeout=timeout))
            for task in page.tasks:
                yield task
            after = page.next
            if after is None:
                return

    async def move_alias(
        self,
        task_id: str,
        alias: str,
        version: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 — of both calls with their retries
    ) -> Receipt:
        """Point an alias to a version, whatever it pointed to when this was called.

        Raises ApiError 412 when two writers move it at the same moment and the other one wins.
        """
        deadline = self._deadline(timeout)
        revision = await self._run(admin.alias_revision(task_id, alias), deadline)
        return await self._run(admin.set_alias(task_id, alias, version, revision=revision), deadline)
