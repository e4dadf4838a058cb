"""Owns what can be asked of the public port: operations, and the values they answer with. Knows the documented routes
alone, nothing of the server's inside, and not how anything is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from client.errors import InvalidCall
from client.operation import Operation, Repeat, Reply, header_value, json_body

Text = str | tuple[str, str]
"""One text, or a text and its pair."""

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Result:
    """The answer for one text: the best label and its probability, and all probabilities in the answer's
    label order.

    `labels` holds what a multi-label task answers: every label above its threshold; None for other tasks.
    """

    label: str
    score: float
    probs: tuple[float, ...]
    labels: tuple[str, ...] | None
    truncated: bool


@dataclass(frozen=True)
class Answer:
    """One request's answer. `version` is the SHA-256 of the prompt file that gave it.

    `store_revision` is how much of the store's history the server had seen, `<epoch>:<number>`.
    """

    task_id: str
    version: str
    labels: tuple[str, ...]
    results: tuple[Result, ...]
    request_id: str
    store_revision: str


@dataclass(frozen=True)
class ServedTask:
    """A task that a server answers for; `version` is what `current` leads to, None where there is no such alias."""

    task_id: str
    version: str | None
    created: int


def classify(
    task_id: str,
    texts: Text | Sequence[Text],
    *,
    version: str | None = None,
    request_key: str | None = None,
    min_revision: str | None = None,
    timeout: float | None = None,
) -> Operation[Answer]:
    """Labels of one text or a list of them; a tuple is a text and its pair. `version` is an alias or a SHA-256.

    While an alias is split between versions, requests with the same `request_key` (a user's id, say) get the same
    version.

    With `min_revision`, from a receipt or an answer, the server answers from a catalogue that has seen it: what
    was published is what answers, on every replica; ApiError 503 `revision_not_reached` where one is far behind,
    412 `revision_lost` where the store has lost that history: ask again without it.

    Raises ApiError (404 for an unknown task, 422 for a bad text, 429 when the server is full), UnreachableError,
    DeadlineExceeded, or InvalidCall for what is no text.
    """
    # A tuple is one pair, as `Text` says; several texts come in a list.
    many: Sequence[Text] = [texts] if isinstance(texts, str | tuple) else texts
    body: dict[str, object] = {"task_id": task_id, "input": [_input(text) for text in many]}
    if version is not None:
        body["version"] = version
    if min_revision is not None:
        body["min_revision"] = min_revision
    # For gateways, which send a task's requests to the server that has its prompt; servers read the body.
    headers = {**_JSON, "X-Task-ID": quote(task_id, safe="", errors="replace")}
    if request_key is not None:
        headers["X-Request-Key"] = header_value("request_key", request_key)
    return Operation("POST", "/classify", _answer, headers=headers, content=json_body(body), timeout=timeout)


def tasks(*, timeout: float | None = None) -> Operation[tuple[ServedTask, ...]]:
    """Every task that the server answers for, in the order of their ids."""
    return Operation("GET", "/tasks", _tasks, timeout=timeout)


def is_ready(*, timeout: float | None = None) -> Operation[bool]:
    """Whether the server takes work. Asks once; raises UnreachableError when nobody answers."""
    return Operation(
        "GET",
        "/readyz",
        lambda reply: 200 <= reply.status < 300,
        Repeat.NEVER,
        understood=range(300, 600),
        timeout=timeout,
    )


def _input(text: object) -> str | dict[str, str]:
    if isinstance(text, str):
        return text
    if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return {"text": text[0], "text_pair": text[1]}
    raise InvalidCall("texts: expected a text, a tuple of a text and its pair, or a list of these")


def _answer(reply: Reply) -> Answer:
    body: Any = reply.json()
    return Answer(
        task_id=body["task_id"],
        version=body["version"],
        labels=tuple(body["labels"]),
        results=tuple(
            Result(
                label=item["label"],
                score=item["score"],
                probs=tuple(item["probs"]),
                labels=None if item.get("labels") is None else tuple(item["labels"]),
                truncated=bool(item.get("truncated", False)),
            )
            for item in body["data"]
        ),
        request_id=body["id"],
        store_revision=reply.headers.get("X-Store-Revision", ""),
    )


def _tasks(reply: Reply) -> tuple[ServedTask, ...]:
    return tuple(ServedTask(item["id"], item["version"], item["created"]) for item in reply.json()["data"])
