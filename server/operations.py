"""What an operator can do: upload, alias, roll back, delete, look.

Owns: the order of check and write. Must not know: HTTP routes, how prompts are checked or loaded. Every write
is checked and made ready on this server before the store has it, so that what was accepted can also be
served.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_store import (
    AliasRecord,
    DigestMismatch,
    NotFound,
    PromptStore,
    Receipt,
    RevisionConflict,
    Target,
    TaskRecord,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
    VersionRecord,
    check_alias,
    version_of,
)
from server.catalogue import Catalogue, Problem, ServedTask
from server.errors import InvalidRequest
from server.guard import Guard
from server.prompt_cache import PromptCache
from server.prompt_decoder import Checked
from server.prompt_loader import PromptLoader
from server.prompt_sync import PromptSync
from server.prompt_tiers import PromptTiers
from server.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload came to; `receipt` is None for a dry run."""

    created: bool
    method: str
    receipt: Receipt | None


class Operations:
    """The operations behind the admin routes. `prepare` puts a version on the device or raises."""

    def __init__(
        self,
        store: PromptStore,
        catalogue: Catalogue,
        cache: PromptCache,
        tiers: PromptTiers[Checked],
        loader: PromptLoader,
        sync: PromptSync,
        traffic: Traffic,
        guard: Guard,
        prepare: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._store, self._catalogue, self._cache, self._tiers = store, catalogue, cache, tiers
        self._loader, self._sync, self._prepare = loader, sync, prepare
        self._traffic, self._guard = traffic, guard

    async def tasks(self, after: str | None, limit: int) -> dict[str, Any]:
        """One page of tasks."""
        page = await self._store.list(after=after, limit=limit)
        # Those that the store lost stand where they would stand in its list; `page.next` None: to the last.
        end, known = page.next, {task.task_id for task in page.tasks}
        missing = heapq.nsmallest(
            limit + 1,  # one more than is shown: whether there is more
            (
                task_id
                for task_id in self._catalogue.missing
                if (after is None or task_id > after)
                and (end is None or task_id <= end)
                and task_id not in known
            ),
        )
        lost = [_as_record(task) for task_id in missing if (task := self._catalogue.get(task_id)) is not None]
        tasks = sorted([*page.tasks, *lost], key=lambda task: task.task_id)
        return {
            "tasks": [self.describe(task) for task in tasks[:limit]],
            "next": tasks[limit - 1].task_id if len(tasks) > limit else page.next,
            "revision": {"epoch": page.revision.epoch, "number": page.revision.number},
            "unreadable": list(page.unreadable),
        }

    async def task(self, task_id: str) -> dict[str, Any]:
        """One task."""
        try:
            return self.describe(await self._store.task(task_id))
        except UnknownTask:
            served = self._catalogue.get(task_id)
            if served is None or not served.missing_in_store:
                raise
            return self.describe(_as_record(served))

    async def alias(self, task_id: str, alias: str) -> AliasRecord:
        """One alias as the store has it."""
        record = (await self._store.task(task_id)).aliases.get(check_alias(alias))
        if record is None:
            raise UnknownAlias(f"the task has no alias {alias}")
        return record

    async def upload(self, task_id: str, version: str, data: bytes, *, dry_run: bool, actor: str) -> Uploaded:
        """Check and store a prompt file."""
        if await asyncio.to_thread(version_of, data) != version:
            raise DigestMismatch(f"the body's SHA-256 is not {version}")
        manifest = await self._loader.try_out(data, task_id)
        if dry_run:
            return Uploaded(version not in await self._versions(task_id), manifest.method, None)
        published = await self._store.publish(data, expect_version=version, actor=actor)
        self._cache.forget_failure(version)
        self._tiers.put(version, data)
        await self._sync.refresh_after_write(task_id)
        return Uploaded(published.created, manifest.method, published)

    async def move(
        self, task_id: str, alias: str, targets: Sequence[Target], expected: int, *, dry_run: bool, actor: str
    ) -> tuple[AliasRecord, Receipt | None]:
        """Create or move an alias, once its versions are on the device. No receipt for a dry run."""
        check_alias(alias)
        task = await self._store.task(task_id)
        record = task.aliases.get(alias)
        _check_revision(record, expected)
        known = {version.version for version in task.versions}
        for target in targets:
            if target.version not in known:
                raise UnknownVersion(f"the task has no version {target.version}")
            await self._prepare(task_id, target.version)
        if dry_run:
            return AliasRecord(alias, tuple(targets), record.revision if record else 0), None
        moved = await self._store.set_alias(task_id, alias, targets, expected_revision=expected, actor=actor)
        await self._sync.refresh_after_write(task_id)
        return moved.alias, moved

    async def promote(
        self, task_id: str, alias: str, version: str, expected: int, *, dry_run: bool, actor: str
    ) -> tuple[AliasRecord, Receipt | None]:
        """Give one of the alias's versions all of its requests."""
        record = await self.alias(task_id, alias)
        _check_revision(record, expected)
        if version not in {target.version for target in record.targets}:
            raise InvalidRequest(f"the alias {alias} does not lead to this version", param="version")
        return await self.move(task_id, alias, [Target(version)], expected, dry_run=dry_run, actor=actor)

    async def delete_alias(
        self, task_id: str, alias: str, expected: int, *, dry_run: bool, actor: str
    ) -> Receipt | None:
        """Remove an alias."""
        if dry_run:
            _check_revision(await self.alias(task_id, alias), expected)
            return None
        receipt = await self._store.delete_alias(task_id, alias, expected_revision=expected, actor=actor)
        await self._sync.refresh_after_write(task_id)
        return receipt

    async def delete_version(
        self, task_id: str, version: str, *, dry_run: bool, actor: str
    ) -> Receipt | None:
        """Remove a version that no alias leads to."""
        if dry_run:
            task = await self._store.task(task_id)
            if version not in {record.version for record in task.versions}:
                raise UnknownVersion("the task has no such version")
            if any(target.version == version for alias in task.aliases.values() for target in alias.targets):
                raise VersionInUse("an alias leads to this version")
            return None
        receipt = await self._store.delete_version(task_id, version, actor=actor)
        await self._sync.refresh_after_write(task_id)
        return receipt

    async def delete_task(self, task_id: str, *, force: bool, dry_run: bool, actor: str) -> Receipt | None:
        """Remove a task."""
        if dry_run:
            if (await self._store.task(task_id)).aliases and not force:
                raise VersionInUse("the task has aliases; delete them first, or use force")
            return None
        receipt = await self._store.delete_task(task_id, force=force, actor=actor)
        await self._sync.refresh_after_write(task_id)
        return receipt

    async def history(self, task_id: str, limit: int) -> list[dict[str, Any]]:
        """What happened to a task, newest first."""
        return [
            {
                "revision": e.revision,
                "at": e.at,
                "actor": e.actor,
                "action": e.action,
                "detail": dict(e.detail),
            }
            for e in await self._store.history(task_id, limit=limit)
        ]

    async def download(self, task_id: str, version: str) -> bytes:
        """The bytes of a version."""
        return await self._store.get(task_id, version)

    def describe(self, task: TaskRecord) -> dict[str, Any]:
        """A task as the store has it, and what this server makes of it."""
        served = self._catalogue.get(task.task_id)
        return {
            "task_id": task.task_id,
            "revision": task.revision,
            "missing_in_store": bool(served and served.missing_in_store),
            "aliases": {
                name: {
                    **alias_json(alias),
                    "targets": [self._describe_target(target) for target in alias.targets],
                    "serving": [target.version for target in self._catalogue.targets(task.task_id, name)],
                    "quarantined": self._guard.quarantined(task.task_id, name),
                    "problem": _problem(served.problems.get(name)) if served else None,
                }
                for name, alias in task.aliases.items()
            },
            "versions": [
                {
                    "version": version.version,
                    "size": version.size,
                    "published_at": version.published_at,
                    "method": version.method,
                    "labels": version.labels,
                    "on_device": version.version in self._cache,
                }
                for version in task.versions
            ],
        }

    def _describe_target(self, target: Target) -> dict[str, Any]:
        counts = self._traffic.of(target.version)
        traffic = {"traffic": counts.as_json()} if counts is not None else {}
        return {"version": target.version, "weight": target.weight, **traffic}

    async def _versions(self, task_id: str) -> set[str]:
        try:
            return {version.version for version in (await self._store.task(task_id)).versions}
        except NotFound:
            return set()


def _as_record(served: ServedTask) -> TaskRecord:
    """A task that the store lost, as far as this server still knows it."""
    return TaskRecord(
        served.task_id,
        {name: AliasRecord(name, targets, 0) for name, targets in served.aliases.items()},
        tuple(VersionRecord(version, 0, served.created, "unknown", 0) for version in served.versions),
        served.revision,
    )


def alias_json(alias: AliasRecord) -> dict[str, Any]:
    """An alias as an answer shows it."""
    return {
        "alias": alias.name,
        "version": alias.version,
        "targets": [{"version": target.version, "weight": target.weight} for target in alias.targets],
        "revision": alias.revision,
    }


def _problem(problem: Problem | None) -> dict[str, Any] | None:
    if problem is None:
        return None
    return {
        "versions": list(problem.versions),
        "code": problem.code,
        "detail": problem.detail,
        "since": problem.since,
    }


def _check_revision(record: AliasRecord | None, expected: int) -> None:
    """What the store checks again when it writes; here so that nothing is loaded in vain."""
    current = record.revision if record else 0
    if current != expected:
        raise RevisionConflict(f"the alias is at revision {current}, not {expected}", current=current)
