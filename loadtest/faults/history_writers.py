"""Writers that contend for a few tasks of a store, and write down what they asked and were told.

Owns: the mix of calls, and a history's prompts. Must not know: which store it is, what fails, what makes a history
good. Everything that a writer chooses follows from its seed and from the answers it gets.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from loadtest.faults.linearizability import Operation
from loadtest.faults.task_model import READS, Action, Answer, Call
from loadtest.prompts import make_prompt
from prompt_store import (
    BackboneRef,
    PromptStore,
    PromptStoreError,
    RevisionConflict,
    StoreUnavailable,
    Target,
    encode_prompt,
    open_store,
    version_of,
)

TASKS: Final = ("alpha", "beta")
VERSIONS: Final = 3
_ALIASES: Final = ("current", "canary")
_MIX: Final[dict[Action, int]] = {
    "publish": 18,
    "set_alias": 38,
    "task": 20,
    "get": 10,
    "delete_alias": 5,
    "delete_version": 7,
    "delete_task": 2,
}
_EXPECTED: Final = ("known", "known", "known", "any", "absent")  # what a compare-and-set names
_BACKBONE: Final = BackboneRef(
    name="tiny", fingerprint="cd" * 32, embedding_width=2, hidden_size=2, layers=1, kv_heads=1, head_dim=2
)


@functools.cache
def prompt(task: str, number: int) -> bytes:
    """One of a task's prompt files: the same in every process."""
    return encode_prompt(*make_prompt(task, "bare", _BACKBONE, seed=number))


def make_prompts() -> None:
    """Make all of them now, so that no history waits for it."""
    for task in TASKS:
        for number in range(VERSIONS):
            prompt(task, number)


@dataclass(frozen=True)
class Plan:
    """What one writer does: calls until `until` (of time.monotonic), `calls` at most, with pauses between."""

    name: str
    seed: int
    until: float
    calls: int = 200
    pause: float = 0.02  # the longest


def write_on(url: str, plan: Plan) -> list[Operation]:
    """`write` with a store and an event loop of its own, for a thread or a process."""

    async def run() -> list[Operation]:
        store = open_store(url)
        try:
            return await write(store, plan)
        finally:
            await store.aclose()

    return asyncio.run(run())


def write_and_tell(url: str, plan: Plan, tell: Callable[[Operation], None]) -> None:
    """`write` in a process that may be killed: `tell` hears of each call before it is made, and again afterwards."""

    async def run() -> None:
        await write(open_store(url), plan, tell)

    asyncio.run(run())


def _to_nobody(_operation: Operation) -> None:
    return


async def write(
    store: PromptStore, plan: Plan, tell: Callable[[Operation], None] = _to_nobody
) -> list[Operation]:
    """Carry the plan out; what came of it, in the order of the calls."""
    recorder = Recorder(store, plan.name, tell)
    rng = random.Random(f"{plan.seed} {plan.name}")
    while time.monotonic() < plan.until and len(recorder.operations) < plan.calls:
        if not await recorder.make(_choose(rng, recorder.known)):
            await asyncio.sleep(0.03 + 0.05 * rng.random())  # a store that is away needs no hammering
        await asyncio.sleep(plan.pause * rng.random() ** 2)
    return recorder.operations


def _choose(rng: random.Random, known: dict[tuple[str, str], int]) -> Call:
    (action,) = rng.choices(list(_MIX), list(_MIX.values()))
    task = rng.choice(TASKS)
    version = version_of(prompt(task, rng.randrange(VERSIONS)))
    alias = rng.choice(_ALIASES)
    kind = rng.choice(_EXPECTED)
    expected = {"known": known.get((task, alias), 0), "any": None, "absent": 0}[kind]
    if action == "set_alias":
        targets = [Target(version)]
        if rng.random() < 0.2 and (other := version_of(prompt(task, 0))) != version:
            targets.append(Target(other, 2))
        return Call(action, task, alias=alias, targets=tuple(targets), expected=expected)
    if action == "delete_alias":
        return Call(action, task, alias=alias, expected=expected)
    if action == "delete_task":
        return Call(action, task, force=rng.random() < 0.5)
    return Call(action, task, version="" if action == "task" else version)


@dataclass
class Recorder:
    """Makes calls on a store and writes them down. `known`: the revision an alias was last seen at."""

    store: PromptStore
    name: str
    tell: Callable[[Operation], None] = _to_nobody
    operations: list[Operation] = field(default_factory=list)
    known: dict[tuple[str, str], int] = field(default_factory=dict)

    async def make(self, call: Call) -> bool:
        """Whether the call was answered."""
        name = f"{self.name}-{len(self.operations)}"
        invoked = time.monotonic_ns()
        self.tell(Operation(name, call, invoked, None, None))
        try:
            answer = await _CALLS[call.action](self.store, call, name)
        except StoreUnavailable:
            if call.action not in READS:  # a read without an answer says nothing
                self.operations.append(Operation(name, call, invoked, None, None))
            return False
        except RevisionConflict as error:
            answer = Answer(error.code, current=error.current)
            self.known[call.task, call.alias] = error.current
        except PromptStoreError as error:
            answer = Answer(error.code)
        except Exception as error:
            answer = Answer(f"{type(error).__name__} ({error})")  # which no state of a task allows
        self.operations.append(Operation(name, call, invoked, time.monotonic_ns(), answer))
        self.tell(self.operations[-1])
        self._learn(call, answer)
        return True

    def _learn(self, call: Call, answer: Answer) -> None:
        if answer.alias_revision:
            self.known[call.task, call.alias] = answer.alias_revision
        if answer.record is not None:
            for alias in answer.record.aliases.values():
                self.known[call.task, alias.name] = alias.revision


async def _publish(store: PromptStore, call: Call, name: str) -> Answer:
    data = next(p for p in (prompt(call.task, n) for n in range(VERSIONS)) if version_of(p) == call.version)
    done = await store.publish(data, actor=name)
    if (done.task_id, done.version) != (call.task, call.version):
        return Answer(f"published {done.version[:6]} of {done.task_id}")
    return Answer(epoch=done.revision.epoch, revision=done.revision.number, created=done.created)


async def _set_alias(store: PromptStore, call: Call, name: str) -> Answer:
    moved = await store.set_alias(
        call.task, call.alias, call.targets, expected_revision=call.expected, actor=name
    )
    if (moved.alias.name, moved.alias.targets) != (call.alias, call.targets):
        return Answer(f"set {moved.alias.name} to {moved.alias.targets}")
    return Answer(
        epoch=moved.revision.epoch, revision=moved.revision.number, alias_revision=moved.alias.revision
    )


async def _delete_alias(store: PromptStore, call: Call, name: str) -> Answer:
    done = await store.delete_alias(call.task, call.alias, expected_revision=call.expected, actor=name)
    return Answer(epoch=done.revision.epoch, revision=done.revision.number)


async def _delete_version(store: PromptStore, call: Call, name: str) -> Answer:
    done = await store.delete_version(call.task, call.version, actor=name)
    return Answer(epoch=done.revision.epoch, revision=done.revision.number)


async def _delete_task(store: PromptStore, call: Call, name: str) -> Answer:
    done = await store.delete_task(call.task, force=call.force, actor=name)
    return Answer(epoch=done.revision.epoch, revision=done.revision.number)


async def _task(store: PromptStore, call: Call, _name: str) -> Answer:
    return Answer(record=await store.task(call.task))


async def _get(store: PromptStore, call: Call, _name: str) -> Answer:
    data = await store.get(call.task, call.version)
    return Answer("" if version_of(data) == call.version else "other bytes")


_CALLS: Final[dict[Action, Callable[[PromptStore, Call, str], Awaitable[Answer]]]] = {
    "publish": _publish,
    "set_alias": _set_alias,
    "delete_alias": _delete_alias,
    "delete_version": _delete_version,
    "delete_task": _delete_task,
    "task": _task,
    "get": _get,
}


async def read_all(store: PromptStore, name: str, operations: Sequence[Operation]) -> list[Operation]:
    """What the store holds in the end: every task and version of these operations, as operations too."""
    recorder = Recorder(store, name)
    tasks = sorted({operation.call.task for operation in operations})
    for task in tasks:
        await recorder.make(Call("task", task))
        for number in range(VERSIONS):
            await recorder.make(Call("get", task, version=version_of(prompt(task, number))))
    return recorder.operations
