"""What versions there are of some tasks whose prompts tell who they are, and whether an answer is one of theirs.

Owns: the tasks' names, the numbering of their versions, and the reading of answers. Must not know: stores, servers,
faults.
"""

from __future__ import annotations

import json
from typing import Any, Final

from loadtest.faults.telling_prompts import LETTERLESS, read_scores, telling_prompt
from prompt_store import BackboneRef

TEXTS: Final = tuple(LETTERLESS + text for text in ("fine day", "text without any meaning at all", "word"))


class Ledger:
    """Every version that was ever made of some tasks. Safe to ask from several threads."""

    def __init__(self, shape: BackboneRef, tasks: int) -> None:
        self.shape = shape
        self.tasks = [f"task-{number:04d}" for number in range(tasks)]
        self.data: dict[str, bytes] = {}
        self._known: dict[str, tuple[int, int]] = {}
        self._last = dict.fromkeys(self.tasks, -1)

    def make(self, task_id: str) -> bytes:
        """The file of the task's next version."""
        task, number = self.tasks.index(task_id), self._last[task_id] + 1
        made = telling_prompt(task_id, task, number, self.shape, soft=False)
        self._last[task_id] = number
        self._known[made.version] = (task, number)
        self.data[made.version] = made.data
        return made.data

    def wrong(self, task_id: str, answer: Any) -> str | None:
        """What is wrong with the answer (the JSON of a 200) to a request for the task; None: nothing."""
        named = self._known.get(answer["version"])
        if named is None or self.tasks[named[0]] != task_id or answer["task_id"] != task_id:
            return f"{task_id}: a version that it never had"
        for row in answer["data"]:
            told = read_scores(row["probs"])
            if told != named:
                return f"{task_id}: it names version {named[1]}, the scores are of {told or 'none'}"
        return None


def body(task_id: str, text: str) -> bytes:
    """A request's JSON."""
    return json.dumps({"task_id": task_id, "input": text}).encode()
