"""Owns the client of `POST /classify`. Knows the documented request and answer, nothing of the server's
inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.errors import ApiError
from client.transport import Connection

_TASK_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Text = str | tuple[str, str]
"""One text, or a text and its pair."""


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


class Client(Connection):
    """Asks a server for labels; the public port, such as http://127.0.0.1:8000."""

    def classify(
        self,
        task_id: str,
        texts: Text | list[Text] | list[str],
        *,
        version: str | None = None,
        request_key: str | None = None,
        min_revision: str | None = None,
    ) -> Answer:
        """Labels of one text or many; `version` is an alias or a SHA-256, `current` when None.

        While an alias is split between versions, requests with the same `request_key` (a user's id, say) get the
        same version.

        With `min_revision`, from a receipt or an answer, the server answers from a catalogue that has seen it: what
        was published is what answers, on every replica; ApiError 503 `revision_not_reached` where one is far behind,
        412 `revision_lost` where the store has lost that history: ask again without it.

        Raises ApiError (404 for an unknown task, 422 for a bad text, 429 when the server is full) or
        UnreachableError.
        """
        # A tuple is one pair, as `Text` says; several texts come in a list.
        many: Sequence[Any] = [texts] if isinstance(texts, str | tuple) else texts
        body: dict[str, object] = {"task_id": task_id, "input": [_input(text) for text in many]}
        if version is not None:
            body["version"] = version
        if min_revision is not None:
            body["min_revision"] = min_revision
        headers = {} if request_key is None else {"X-Request-Key": request_key}
        if _TASK_ID.fullmatch(task_id):
            # For a gateway that routes by task. Servers read the body alone, and refuse there what is no task's id.
            headers["X-Task-ID"] = task_id
        response = self._send("POST", "/classify", json=body, headers=headers)
        return _answer(response.json(), response.headers.get("X-Store-Revision", ""))

    def is_ready(self) -> bool:
        """Whether the server takes work. Raises UnreachableError when nobody answers."""
        try:
            self._send("GET", "/readyz")
        except ApiError:
            return False
        return True


def _input(text: Text) -> str | dict[str, str]:
    return text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}


def _answer(body: Mapping[str, Any], store_revision: str) -> Answer:
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
        store_revision=store_revision,
    )
