"""Tasks whose answers tell which version gave them: filling a store with them, asking, and checking what came back.

Owns: the tasks' names, the questions, and what an answer's parts must have to do with one another. Must not know: which
version is right at which time, or any experiment.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest import workload
from loadtest.faults.replicas import BackboneName
from loadtest.faults.telling_prompts import LETTERLESS, Telling, read_scores, telling_prompt
from prompt_store import BackboneRef, Target, open_store


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says of itself, found consistent."""

    task: int
    number: int
    version: str


class ToldTasks:
    """`count` tasks for a backbone. Safe for threads."""

    def __init__(self, count: int, backbone: BackboneName, *, seed: int) -> None:
        self.ids = workload.task_ids(count)
        self._shape, self._soft = shape_of(backbone), backbone != "fake"
        self._texts = [LETTERLESS + text for text in workload.texts(512, seed=seed)]
        self._names: dict[str, tuple[int, int]] = {}  # version → task and number
        self._lock = threading.Lock()

    def prompt(self, task: int, number: int) -> Telling:
        """A version of a task; from now on answers may name it."""
        made = telling_prompt(self.ids[task], task, number, self._shape, soft=self._soft)
        with self._lock:
            self._names[made.version] = (task, number)
        return made

    def fill(self, store_url: str) -> list[str]:
        """Publish version 0 of every task and make it current; the versions."""
        return asyncio.run(self._fill(store_url))

    async def _fill(self, store_url: str) -> list[str]:
        store = open_store(store_url)
        try:
            versions = []
            for task in range(len(self.ids)):
                made = self.prompt(task, 0)
                await store.publish(made.data)
                await store.set_alias(self.ids[task], "current", [Target(made.version)], expected_revision=0)
                versions.append(made.version)
            return versions
        finally:
            await store.aclose()

    def body(self, task: int, number: int) -> bytes:
        """A request for the task; `number` chooses the text."""
        text = self._texts[number % len(self._texts)]
        return json.dumps({"task_id": self.ids[task], "input": text}).encode()

    def read(self, task: int, body: bytes) -> Told | str:
        """What the answer says; in words where its parts do not belong together."""
        answer = json.loads(body)
        version, probs = answer["version"], answer["data"][0]["probs"]
        with self._lock:
            named = self._names.get(version)
        told = read_scores(probs)
        if told is None:
            return f"mixed: {self.ids[task]} answered scores that no version gives: {probs}"
        if answer["task_id"] != self.ids[task] or told[0] != task:
            return f"another task's: asked {task}, named {answer['task_id']}, scores of task {told[0]}"
        if named != told:
            return f"mixed: {version[:12]} is version {named}, the scores are of {told}"
        return Told(*told, version)


def choices(count: int, seed: int) -> Sequence[int]:
    """Which task the n-th request is for, taken round: some tasks much more often than others, but all of them."""
    often = itertools.islice(workload.task_choices("zipf", count, seed=seed), 4096)
    return [*often, *range(count)]


def shape_of(backbone: BackboneName) -> BackboneRef:
    """What a prompt for the backbone must fit."""
    if backbone == "fake":
        from tests.server.fakes import REF

        return REF
    from backbone import load_backbone

    return load_backbone(backbone).shape
