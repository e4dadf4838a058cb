"""Tasks whose answers tell which version gave them: filling a store with them, asking, and checking what came back.

Owns: the tasks' names, the numbers of their versions, the questions of one to eight texts, and what an answer's rows
and its other parts must have to do with one another. Must not know: which version is right at which time,
any experiment.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtest import workload
from loadtest.faults.replicas import BackboneName, shape_of
from loadtest.faults.telling_prompts import LETTERLESS, Telling, read_scores, telling_prompt
from prompt_store import Target, open_store
from server.prompt_cache import SLOT_OVERHEAD

_TEXTS: Final = 32
_MOST: Final = 8  # texts in one request


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says of itself, found consistent."""

    task: int
    number: int
    version: str


class ToldTasks:
    """`count` tasks for a backbone. Safe for threads.

    `data` has the files of the versions that `make` made.
    """

    def __init__(self, count: int, backbone: BackboneName, *, seed: int) -> None:
        self.ids = workload.task_ids(count)
        self._indices = {task_id: at for at, task_id in enumerate(self.ids)}
        self._texts = [LETTERLESS + text for text in workload.texts(_TEXTS, seed=seed)]
        if backbone == "fake":
            self._shape, self._scores = shape_of(backbone), None
        else:
            from backbone import load_backbone
            from loadtest.faults.soft_scores import SoftScores

            loaded = load_backbone(backbone)
            self._shape, self._scores = loaded.shape, SoftScores(loaded, self._texts)
        rng = random.Random(seed)
        # Neither list's length is a multiple of the other's: a task comes by with every number of texts.
        self._asked = [rng.choices(range(_TEXTS), k=rng.randint(1, _MOST)) for _ in range(1021)]
        self._names: dict[str, tuple[int, int]] = {}  # version → task and number
        self._next = [0] * count  # the number of each task's next version
        self.data: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def prompt(self, task: int, number: int) -> Telling:
        """A version of a task; from now on answers may name it."""
        made = telling_prompt(self.ids[task], task, number, self._shape, soft=self._scores is not None)
        with self._lock:
            self._names[made.version] = (task, number)
            self._next[task] = max(self._next[task], number + 1)
        return made

    def make(self, task: int) -> bytes:
        """The file of the task's next version, which `data` has from now on."""
        with self._lock:
            number = self._next[task]
            self._next[task] += 1
        made = self.prompt(task, number)
        self.data[made.version] = made.data
        return made.data

    def index(self, task_id: str) -> int:
        """Which of the tasks has the name."""
        return self._indices[task_id]

    def fill(self, store_url: str) -> list[str]:
        """Publish version 0 of every task and make it current; the versions."""
        return asyncio.run(self._fill(store_url))

    def flags(self, room: float) -> tuple[str, ...]:
        """For servers with room on the device for this share of the tasks, so that slots are given to others."""
        one = self.prompt(0, 0)
        slot = one.nbytes + SLOT_OVERHEAD
        return ("--prompt-cache-bytes", str(max(slot, round(room * len(self.ids) * slot))))

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

    def texts(self, number: int) -> Sequence[int]:
        """Which texts the `number`-th request has."""
        return self._asked[number % len(self._asked)]

    def body(self, task: int, number: int, *, version: str | None = None) -> bytes:
        """The `number`-th request, for the task. One text is sent as a text or as a list of one."""
        texts = [self._texts[at] for at in self.texts(number)]
        asked = {"task_id": self.ids[task], "input": texts[0] if len(texts) == 1 and number % 2 else texts}
        return json.dumps(asked if version is None else {**asked, "version": version}).encode()

    def read(self, task: int, number: int, body: bytes) -> Told | str:
        """What the answer to that request says; in words where its parts do not belong together."""
        answer = json.loads(body)
        version, texts = answer["version"], self.texts(number)
        rows = [row["probs"] for row in answer["data"]]
        if len(rows) != len(texts) or [row["index"] for row in answer["data"]] != list(range(len(rows))):
            return f"other rows: {self.ids[task]} answered {len(rows)} rows for {len(texts)} texts"
        with self._lock:
            named = self._names.get(version)
        told = {read_scores(row) for row in rows}
        if None in told:
            return f"mixed: {self.ids[task]} answered scores that no version gives: {rows}"
        if answer["task_id"] != self.ids[task] or any(one is not None and one[0] != task for one in told):
            return f"another task's: asked {task}, named {answer['task_id']}, scores of {told}"
        if named is None or told != {named}:
            return f"mixed: {version[:12]} is version {named}, the scores are of {told}"
        if self._scores is not None and (wrong := self._scores.wrong(*named, texts, rows)) is not None:
            return f"mixed: {version[:12]} is version {named}, {wrong}"
        return Told(*named, version)


def choices(count: int, seed: int) -> Sequence[int]:
    """Which task the n-th request is for, taken round: some tasks much more often than others, but all of them."""
    often = itertools.islice(workload.task_choices("zipf", count, seed=seed), 4096)
    return [*often, *range(count)]
