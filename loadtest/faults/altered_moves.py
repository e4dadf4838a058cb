"""Moves of `current` to versions whose bytes were altered in the store.

Owns: the course of a move, and what is asked meanwhile. Must not know: how bytes are altered, the tiers.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Final

from loadtest.faults.admin_writer import current_versions, make_current, store_prompts
from loadtest.faults.altered_stage import Count, Stage
from loadtest.faults.faulty_server import Caller, FaultyServer
from loadtest.faults.known_load import ask, until
from loadtest.faults.told_answers import Told

_REFUSED_SECONDS: Final = 5.0
_HEALED_SECONDS: Final = 20.0
_ASKED: Final = 10  # times, of each task


@dataclass(frozen=True, slots=True)
class Move:
    """`current` of a task goes from one version to one whose bytes are altered."""

    how: str
    task: int
    task_id: str
    old: str
    new: str


def moves(stage: Stage, server: FaultyServer) -> None:
    """Every alteration in turn, then all of them healed."""
    tasks = iter(enumerate(stage.tasks.ids))
    current = current_versions(stage.url)
    made: list[Move] = []
    with Caller(server.url) as caller, Caller(server.admin_url) as admin:
        for how, count in stage.counts.items():
            batch = [
                Move(how, task, task_id, current[task_id], stage.make(task))
                for task, task_id in itertools.islice(tasks, stage.tries)
            ]
            _move(stage, server, batch)
            _look(count, batch, admin)
            for move in batch:
                _ask(stage, count, move, caller)
            made += batch
        _heal(stage, made, caller, admin)


def _move(stage: Stage, server: FaultyServer, batch: list[Move]) -> None:
    count = stage.counts[batch[0].how]
    store_prompts(stage.url, [stage.tasks.data[move.new] for move in batch])
    for move in batch:
        stage.alter(move.how, move.task, move.new, stage.store)
    before = server.metric("promptmux_refused_versions_total")
    make_current(stage.url, {move.task_id: move.new for move in batch})
    count.moves += len(batch)

    def refused() -> int:
        return int(server.metric("promptmux_refused_versions_total") - before)

    until(lambda: refused() >= len(batch), patience=_REFUSED_SECONDS)
    count.counted += refused()


def _look(count: Count, batch: list[Move], admin: Caller) -> None:
    """What the admin API says of the tasks."""
    for move in batch:
        alias = admin.ask("GET", f"/admin/tasks/{move.task_id}").json["aliases"]["current"]
        problem = alias["problem"]
        if (
            problem
            and move.new in problem["versions"]
            and problem["detail"]
            and alias["serving"] == [move.old]
        ):
            count.refused += 1
            count.codes[problem["code"]] += 1


def _ask(stage: Stage, count: Count, move: Move, caller: Caller) -> None:
    """The old version answers, and the new one cannot be had by its name either."""
    for _ in range(_ASKED):
        reply, told = ask(caller, stage.tasks, move.task, next(stage.numbers))
        if isinstance(told, str):
            count.wrong.append(told)
        elif told is None or told.version != move.old:
            count.others[f"after a move: {reply.status} {reply.code}"] += 1
        else:
            count.old += 1
    reply, told = ask(caller, stage.tasks, move.task, next(stage.numbers), version=move.new)
    if told is not None:
        count.wrong.append(f"{move.task_id}: altered bytes answered")
    elif (reply.status, reply.code) != (503, "prompt_unavailable"):
        count.others[f"asked for by name: {reply.status} {reply.code}"] += 1


def _heal(stage: Stage, made: list[Move], caller: Caller, admin: Caller) -> None:
    """Publish again, half of them through the admin API; then the versions serve."""
    began = time.monotonic()
    for number, move in enumerate(made):
        data = stage.tasks.data[move.new]
        if number % 2:
            store_prompts(stage.url, [data])
        else:
            path = f"/admin/tasks/{move.task_id}/versions/{move.new}"
            stored = admin.ask("PUT", path, data, "application/octet-stream")
            if stored.status != 200:
                stage.counts[move.how].others[f"published again: {stored.status} {stored.code}"] += 1
    due = list(made)

    def serve() -> bool:
        for move in list(due):
            count = stage.counts[move.how]
            _, told = ask(caller, stage.tasks, move.task, next(stage.numbers))
            if isinstance(told, str):
                count.wrong.append(told)
            elif isinstance(told, Told) and told.version == move.new:
                count.healed += 1
                count.slowest = max(count.slowest, time.monotonic() - began)
                due.remove(move)
        return not due

    until(serve, patience=_HEALED_SECONDS)
