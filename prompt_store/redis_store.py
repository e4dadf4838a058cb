"""The store in a Redis that many processes share.

Owns: the contract's calls as scripts, and following changes. Must not know: the keys (`lua/common.lua` does), how Redis
is spoken to, HTTP, torch.

A publish is one script: bytes, record, history and revision appear together or not at all. Publish/subscribe only
wakes a watcher early; what it sees comes from the revision, which it asks for twice a second besides.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from prompt_store.arguments import check_ids, check_upload, clamp_limit, clean_actor
from prompt_store.codec import version_of
from prompt_store.errors import PromptStoreError, StoreUnavailable, UnknownTask
from prompt_store.names import check_alias, check_task_id
from prompt_store.redis_answers import Answer, corrupt, unwrapped
from prompt_store.redis_connection import RedisConnection, as_unavailable
from prompt_store.redis_hints import RedisHints
from prompt_store.redis_records import event_of, event_text, task_of
from prompt_store.redis_url import RedisPlace
from prompt_store.store import (
    Action,
    AliasRecord,
    Changes,
    Collected,
    Durability,
    Event,
    Moved,
    PromptStore,
    Published,
    Receipt,
    Revision,
    Target,
    TaskPage,
    TaskRecord,
    check_targets,
)

POLL_SECONDS: Final = 0.5
_PIECE_BYTES: Final = 2**20  # of a version in one answer
COLLECT_CHUNK: Final = 100


class RedisStore(PromptStore):
    """`PromptStore` at `place`. Connects on first use."""

    def __init__(self, place: RedisPlace) -> None:
        self._place = place
        self._connection = RedisConnection(place)
        self._changed = asyncio.Event()
        self._hints = RedisHints(self._connection, f"{place.prefix}changes", self._wake)
        self._closed = False

    async def publish(self, data: bytes, *, expect_version: str | None = None, actor: str = "") -> Published:
        """See `PromptStore.publish`."""
        prompt, version = await asyncio.to_thread(check_upload, data, expect_version)
        manifest = prompt.manifest
        now = time.time()
        record = {"published_at": now, "method": manifest.method, "labels": len(manifest.labels)}
        (created, stand), durability = await self._write(
            "publish",
            manifest.task_id,
            version,
            len(data),
            json.dumps(record),
            now,
            *_change(actor, "publish", {"version": version, "method": manifest.method}),
            data,
        )
        return Published(_stand(stand), durability, manifest.task_id, version, created=bool(created))

    async def get(self, task_id: str, version: str) -> bytes:
        """See `PromptStore.get`."""
        check_ids(task_id, version)
        data = bytearray()
        while True:
            # A question that is asked again, and the time that it may take, are about one piece.
            piece, size = await self._read("get", task_id, version, len(data), _PIECE_BYTES, about=task_id)
            data += piece
            if len(data) >= size or not piece:
                break
        found = bytes(data)
        if await asyncio.to_thread(version_of, found) != version:
            raise corrupt(task_id)
        return found

    async def task(self, task_id: str) -> TaskRecord:
        """See `PromptStore.task`."""
        check_task_id(task_id)
        (fields,) = await self._read("task", task_id)
        record = task_of(task_id, dict(zip(fields[::2], fields[1::2], strict=True)))
        if record is None:
            raise UnknownTask(f"unknown task {task_id}")
        return record

    async def list(self, *, after: str | None = None, limit: int = 100) -> TaskPage:
        """See `PromptStore.list`."""
        if after is not None:
            check_task_id(after)
        found, following, stand = await self._read("page", after or "", clamp_limit(limit))
        tasks, unreadable = [], []
        for name, fields in zip(found[::2], found[1::2], strict=True):
            task_id = name.decode()
            try:
                record = task_of(task_id, dict(zip(fields[::2], fields[1::2], strict=True)))
            except PromptStoreError:  # one damaged record must not hide all others
                unreadable.append(task_id)
            else:
                tasks += [record] if record is not None else []
        return TaskPage(tuple(tasks), following.decode() or None, _stand(stand), tuple(unreadable))

    async def history(self, task_id: str, *, limit: int = 100) -> tuple[Event, ...]:
        """See `PromptStore.history`."""
        check_task_id(task_id)
        (found,) = await self._read("history", task_id, clamp_limit(limit), about=task_id)
        return tuple(
            event_of(int(number), body) for number, body in zip(found[::2], found[1::2], strict=True)
        )

    async def set_alias(
        self,
        task_id: str,
        alias: str,
        targets: Sequence[Target],
        *,
        expected_revision: int | None,
        actor: str = "",
    ) -> Moved:
        """See `PromptStore.set_alias`."""
        check_ids(task_id, *(target.version for target in targets))
        check_alias(alias)
        check_targets(targets)
        pairs = [[target.version, target.weight] for target in targets]
        (number, stand), durability = await self._write(
            "set_alias",
            task_id,
            alias,
            "" if expected_revision is None else expected_revision,
            json.dumps(pairs),
            *_change(actor, "alias", {"alias": alias, "targets": pairs}),
            *(target.version for target in targets),
            about=task_id,
            alias=alias,
            expected=expected_revision,
        )
        return Moved(_stand(stand), durability, AliasRecord(alias, tuple(targets), int(number)))

    async def delete_alias(
        self, task_id: str, alias: str, *, expected_revision: int | None, actor: str = ""
    ) -> Receipt:
        """See `PromptStore.delete_alias`."""
        check_task_id(task_id)
        check_alias(alias)
        (stand,), durability = await self._write(
            "delete_alias",
            task_id,
            alias,
            "" if expected_revision is None else expected_revision,
            *_change(actor, "delete_alias", {"alias": alias}),
            about=task_id,
            alias=alias,
            expected=expected_revision,
        )
        return Receipt(_stand(stand), durability)

    async def delete_version(self, task_id: str, version: str, *, actor: str = "") -> Receipt:
        """See `PromptStore.delete_version`."""
        check_ids(task_id, version)
        (stand,), durability = await self._write(
            "delete_version",
            task_id,
            version,
            time.time(),
            *_change(actor, "delete_version", {"version": version}),
            about=task_id,
        )
        return Receipt(_stand(stand), durability)

    async def delete_task(self, task_id: str, *, force: bool = False, actor: str = "") -> Receipt:
        """See `PromptStore.delete_task`."""
        check_task_id(task_id)
        (stand,), durability = await self._write(
            "delete_task",
            task_id,
            int(force),
            time.time(),
            *_change(actor, "delete_task", {}),
            about=task_id,
        )
        return Receipt(_stand(stand), durability)

    async def watch(self, after: Revision, *, timeout: float) -> Changes:  # noqa: ASYNC109 — a long poll: the end of the wait is an answer
        """See `PromptStore.watch`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        woken = True
        while True:
            changed = self._changed  # taken before the look, so that nothing between look and wait is missed
            changes = await self._changes(after)
            if changes.revision != after and not woken:
                self._hints.drop()  # it told nothing: its connection may be dead without knowing it
            remaining = deadline - loop.time()
            if changes.reset or changes.revision != after or remaining <= 0:
                return changes
            self._hints.listen()
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it can swallow a cancellation that meets its own time-out.
                async with asyncio.timeout(min(POLL_SECONDS, remaining)):
                    woken = False
                    woken = await changed.wait()

    async def revision(self) -> Revision:
        """See `PromptStore.revision`."""
        return (await self._changes(Revision("", 0))).revision

    async def collect(self, *, grace: float) -> Collected:
        """See `PromptStore.collect`."""
        before, blobs, size = time.time() - grace, 0, 0
        more = True
        while more:  # a few at a time, for Redis does nothing else meanwhile
            (count, freed, more), _ = await self._write("collect", before, COLLECT_CHUNK)
            blobs, size = blobs + int(count), size + int(freed)
        return Collected(blobs, size)

    async def aclose(self) -> None:
        """See `PromptStore.aclose`."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        await self._hints.aclose()
        with suppress(StoreUnavailable), as_unavailable():
            await self._connection.aclose()

    # ── parts ────────────────────────────────────────────────────────────

    async def _changes(self, after: Revision) -> Changes:
        # The mark comes with the revision that is asked about: nothing that happens here meanwhile, an operator's call
        # say, takes away what shows that history was lost.
        reset, tasks, stand = await self._read("changes", after.epoch, after.number, after.mark, urgent=True)
        return Changes(_stand(stand), tuple(task.decode() for task in tasks), bool(reset))

    async def _read(self, script: str, *arguments: Any, about: str = "", urgent: bool = False) -> Answer:
        self._check_open()
        epoch = secrets.token_hex(8)  # of a new store, if there is none
        return unwrapped(await self._connection.ask(script, epoch, *arguments, urgent=urgent), about)

    async def _write(
        self, script: str, *arguments: Any, about: str = "", alias: str = "", expected: int | None = None
    ) -> tuple[Answer, Durability]:
        self._check_open()
        try:
            answer, durability = await self._connection.tell(script, secrets.token_hex(8), *arguments)
        finally:
            self._wake()
        return unwrapped(answer, about, alias, expected), durability

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("this store was closed")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _stand(stand: Sequence[Any]) -> Revision:
    """Where the history stands, by a script's answer."""
    epoch, number, mark = stand
    return Revision(epoch.decode(), int(number), mark.decode())


def _change(actor: str, action: Action, detail: dict[str, Any]) -> tuple[str, str]:
    """A change's mark and its event, as the scripts take them; the event without its revision."""
    return secrets.token_hex(6), event_text(time.time(), clean_actor(actor), action, detail)
