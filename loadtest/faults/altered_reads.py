"""Requests whose prompt is on the device no more, and whose other copies were altered.

Owns: the course of such a request, and what is counted of it. Must not know: how bytes are altered.

The server keeps nothing on the device between two requests, so that each reads its prompt anew: from host memory, else
from the disk, else from the store.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.faults.admin_writer import current_versions, store_prompts
from loadtest.faults.alterations import Folder, HostMemory, Place
from loadtest.faults.altered_stage import COPIES, Count, Stage
from loadtest.faults.faulty_server import FAKE, Caller, FaultyServer
from loadtest.faults.known_load import ask, until
from loadtest.faults.told_answers import Told

_WARM_SECONDS: Final = 60.0
_HEALED_SECONDS: Final = 10.0  # a version that failed is not tried again for 2 s
_TIERS: Final = ("host", "disk", "store")
_MISSING: Final = "missing"  # the one alteration that leaves nothing whose bytes could be wrong


@dataclass(frozen=True, slots=True)
class Read:
    """One task whose copies in some places are altered."""

    how: str
    task: int
    version: str
    copies: str


def reads(stage: Stage) -> bool:
    """Every alteration, of each set of copies; whether the server was alive in the end."""
    memory, cache = stage.folder / "memory", stage.folder / "evicting"
    host = HostMemory(memory)
    places: dict[str, Place] = {"host": host, "disk": Folder(cache / "prompts"), "store": stage.store}
    server = FaultyServer(
        FAKE,
        *("--store", stage.url, "--cache-dir", str(cache), "--prompt-cache-bytes", "0"),
        module="loadtest.faults.altered_server",
        variables={"ALTERED_HOST_MEMORY": str(memory)},
    )
    current = current_versions(stage.url)
    kinds = [(how, copies) for how in stage.counts for copies in COPIES for _ in range(stage.tries)]
    made = [
        Read(how, task, current[task_id], copies)
        for (task, task_id), (how, copies) in zip(enumerate(stage.tasks.ids), kinds, strict=True)
    ]
    with server, Caller(server.url) as caller:
        # The server takes them there by itself, after its start; what it does later would be counted as found.
        on_disk = [cache / "prompts" / f"{read.version}.safetensors" for read in made]
        if not until(lambda: all(path.exists() for path in on_disk), patience=_WARM_SECONDS):
            raise RuntimeError("the server does not keep its prompts on the disk")
        time.sleep(0.5)
        for read in made:
            ask(caller, stage.tasks, read.task, next(stage.numbers))  # now host memory has it, too
        for read in made:
            stage.alter(read.how, read.task, read.version, *(places[name] for name in COPIES[read.copies]))
            _read(stage, server, caller, read)
        _heal(stage, caller, made)
        return server.alive


def _read(stage: Stage, server: FaultyServer, caller: Caller, read: Read) -> None:
    count = stage.counts[read.how]
    told, expected = _told(read)
    before = _found(server, told)
    reply, answer = ask(caller, stage.tasks, read.task, next(stage.numbers))
    count.reads += 1
    count.altered += len(COPIES[read.copies])
    found = _found(server, told) - before
    count.found += (found & expected).total()
    if found != expected:
        count.others[f"{read.copies} altered, counted: {dict(found)}"] += 1
    good_left = "store" not in COPIES[read.copies]
    if good_left and _right(count, read, answer):
        count.answered += 1
    elif not good_left and (reply.status, reply.code) == (503, "prompt_unavailable"):
        count.unavailable += 1
    else:
        count.others[f"{read.copies} altered: {reply.status} {reply.code}"] += 1


def _right(count: Count, read: Read, answer: Told | str | None) -> bool:
    if isinstance(answer, str):
        count.wrong.append(answer)
    return isinstance(answer, Told) and answer.version == read.version


def _told(read: Read) -> tuple[Sequence[tuple[str, str]], Counter[str]]:
    """By which metrics the tiers tell of the read's copies, and what each tier is to count: its own copy, once.

    An altered copy is never an ordinary miss. A missing one is, but in the store, which knows that it should be there.
    """
    missed = _TIERS[:2] if read.how == _MISSING else ()
    told = [(f"promptmux_tier_{'misses' if tier in missed else 'corrupt'}_total", tier) for tier in _TIERS]
    return told, Counter(COPIES[read.copies])


def _found(server: FaultyServer, told: Sequence[tuple[str, str]]) -> Counter[str]:
    """How many copies each tier has found altered or missing so far."""
    return Counter({tier: int(server.metric(name, tier=tier)) for name, tier in told})


def _heal(stage: Stage, caller: Caller, made: list[Read]) -> None:
    """Publish what was altered in the store again; then all are answered."""
    store_prompts(stage.url, [stage.tasks.data[read.version] for read in made if read.copies == "all"])
    due = list(made)

    def answered() -> bool:
        for read in list(due):
            _, answer = ask(caller, stage.tasks, read.task, next(stage.numbers))
            if _right(stage.counts[read.how], read, answer):
                stage.counts[read.how].reads_healed += 1
                due.remove(read)
        return not due

    until(answered, patience=_HEALED_SECONDS)
