"""Publishing: through a server's admin API, once or again and again, and directly in the store.

Owns: the calls that a publish takes, what counts as a proper refusal, and what the store must hold afterwards by what
the publishers were told. Must not know: what is broken meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Self, TypeVar

from loadtest.faults.faulty_server import Caller, Reply
from loadtest.faults.known_load import json_body
from loadtest.faults.told_answers import ToldTasks
from prompt_store import PromptStore, Target, decode_prompt, open_store, version_of

T = TypeVar("T")

_PAUSE = 0.1
_AT_ONCE = 8


def publish_by_admin(caller: Caller, data: bytes) -> Reply:
    """Upload a prompt and make it current; the first answer that was no success, or the last."""
    task, version = decode_prompt(data).manifest.task_id, version_of(data)
    path = f"/admin/tasks/{task}"
    stored = caller.ask("PUT", f"{path}/versions/{version}", data, "application/octet-stream")
    if stored.status not in (200, 201):
        return stored
    alias = caller.ask("GET", f"{path}/aliases/current")
    if alias.status == 200:
        expected = {"If_Match": alias.headers["etag"]}
    elif alias.code in ("unknown_alias", "unknown_task"):
        expected = {"If_None_Match": "*"}
    else:
        return alias
    return caller.ask("PUT", f"{path}/aliases/current", json_body(version=version), **expected)


def properly_refused(reply: Reply) -> bool:
    """Whether the answer says that the store is away, and when to come again."""
    return (
        reply.status == 503
        and reply.code == "store_unavailable"
        and reply.headers.get("retry-after", "").isdigit()
        and reply.headers.get("content-type", "").startswith("application/problem+json")
    )


class Acknowledged:
    """What `current` of each task must be, by the answers that its publishers had. A task has one publisher at a time.

    A version whose publishing was refused, or had no answer, may be current all the same.
    """

    def __init__(self) -> None:
        self._may: dict[str, list[str]] = {}

    def sure(self, versions: Mapping[str, str]) -> None:
        """These were acknowledged: whatever was before them is no more."""
        self._may.update({task: [version] for task, version in versions.items()})

    def perhaps(self, task: str, version: str) -> None:
        """A version was tried after the last that was acknowledged."""
        self._may[task].append(version)

    def of(self, tasks: Iterable[str]) -> dict[str, str]:
        """What each of these tasks must be at; KeyError for one that nobody can be sure of."""
        found = {task: self._may[task] for task in tasks}
        if unsure := [task for task, may in found.items() if len(may) != 1]:
            raise KeyError(f"not sure of {unsure}")
        return {task: may[0] for task, may in found.items()}

    def lost(self, stored: Mapping[str, str]) -> list[str]:
        """The tasks that the store has at a version which contradicts what was acknowledged."""
        return sorted(task for task, may in self._may.items() if stored.get(task) not in may)


class AdminWriter:
    """Publishes new versions of some tasks through the admin API, from the beginning of a `with` block to its end.

    `stop` tells it to begin nothing more; the end of the block waits for what is under way.
    """

    def __init__(
        self, admin_url: str, tasks: ToldTasks, chosen: Sequence[int], acknowledged: Acknowledged
    ) -> None:
        self._url, self._tasks, self._chosen, self._acknowledged = admin_url, tasks, chosen, acknowledged
        self.published = 0
        self.refused = 0
        self.others: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="admin-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    def finish(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        self.stop()
        self._thread.join()

    def _work(self) -> None:
        turn = 0
        with Caller(self._url) as caller:
            while not self._stop.is_set():
                chosen = self._chosen[turn % len(self._chosen)]
                task, data = self._tasks.ids[chosen], self._tasks.make(chosen)
                try:
                    reply = publish_by_admin(caller, data)
                except (
                    Exception
                ) as error:  # a thread that ends in silence would be taken for one that is content
                    self.others[f"not to be read: {error!r}"] += 1
                    self._acknowledged.perhaps(task, version_of(data))
                else:
                    self._count(reply)
                    if reply.status == 200:
                        self._acknowledged.sure({task: version_of(data)})
                    else:
                        self._acknowledged.perhaps(task, version_of(data))
                turn += 1
                self._stop.wait(_PAUSE)

    def _count(self, reply: Reply) -> None:
        if reply.status == 200:
            self.published += 1
        elif properly_refused(reply):
            self.refused += 1
        else:
            self.others[f"{reply.status} {reply.code}"] += 1


def publish(url: str, prompts: Iterable[bytes]) -> dict[str, str]:
    """Store prompts and make each the current one of its task, in the store itself; the versions acknowledged."""
    done: dict[str, str] = {}

    async def both(store: PromptStore, data: bytes) -> None:
        published = await store.publish(data)
        await store.set_alias(
            published.task_id, "current", [Target(published.version)], expected_revision=None
        )
        done[published.task_id] = version_of(data)

    _each(url, both, prompts)
    return done


def store_prompts(url: str, prompts: Iterable[bytes]) -> None:
    """Store prompts, and leave the aliases where they are."""

    async def one(store: PromptStore, data: bytes) -> None:
        await store.publish(data)

    _each(url, one, prompts)


def make_current(url: str, versions: Mapping[str, str]) -> None:
    """Move `current` of each task to a version that is stored."""

    async def one(store: PromptStore, item: tuple[str, str]) -> None:
        await store.set_alias(item[0], "current", [Target(item[1])], expected_revision=None)

    _each(url, one, versions.items())


def _each(url: str, job: Callable[[PromptStore, T], Awaitable[None]], items: Iterable[T]) -> None:
    """Do the job for every item, some at once, with a store of its own."""

    async def run() -> None:
        store, gate = open_store(url), asyncio.Semaphore(_AT_ONCE)

        async def one(item: T) -> None:
            async with gate:
                await job(store, item)

        try:
            async with asyncio.TaskGroup() as group:
                for item in items:
                    group.create_task(one(item))
        finally:
            await store.aclose()

    asyncio.run(run())


def current_versions(url: str) -> dict[str, str]:
    """What `current` is of every task in the store that has one."""

    async def run() -> dict[str, str]:
        store, found, after = open_store(url), dict[str, str](), None
        try:
            while True:
                page = await store.list(after=after, limit=1000)
                for record in page.tasks:
                    alias = record.aliases.get("current")
                    if alias is not None and alias.version is not None:
                        found[record.task_id] = alias.version
                after = page.next
                if after is None:
                    return found
        finally:
            await store.aclose()

    return asyncio.run(run())
