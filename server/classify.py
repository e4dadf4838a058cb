"""`POST /classify` as a bare ASGI endpoint: the hot path.

Owns: from the request's bytes to a Call, from an Answer to the response's bytes, and dropping callers that
have gone. Must not know: how an answer comes about. It is not a FastAPI route because solving dependencies
and serialising through models costs more than the rest of the request; `routes` documents it from the same
schemas.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from starlette.types import Receive, Scope, Send

from prompt_store import Revision
from server.auth import Keyring
from server.body import BodyLimits, check_media, header, read_body
from server.boundary import REQUEST_ID, send_bytes
from server.engine import Answer, Call, Engine
from server.errors import EmptyInput, InvalidRequest, NotOffered, RequestTimeout, TextTooLong, TooManyInputs
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.schemas import ClassifyBody, TextPair, parse_body
from server.view import parse_revision

# Most answers are ready in fewer seconds: only later is it worth a task to see whether the caller is there.
_PATIENCE: Final = 0.25
_KEY_FORM: Final = "1 to 128 of A-Z a-z 0-9 . _ : / + = -, a letter or digit first"  # REQUEST_ID in words


@dataclass(frozen=True, slots=True)
class ClassifyLimits:
    """What one request may ask for."""

    body: BodyLimits
    max_inputs: int
    max_text_chars: int
    timeout: float


class ClassifyEndpoint:
    """The endpoint; one instance serves every request."""

    def __init__(
        self, engine: Engine, keyring: Keyring, lifecycle: Lifecycle, metrics: Metrics, limits: ClassifyLimits
    ) -> None:
        self._engine, self._keyring, self._lifecycle = engine, keyring, lifecycle
        self._metrics, self._limits = metrics, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Raises what the boundary's handlers turn into an answer."""
        scope["route_path"] = "/classify"
        authorization = header(scope, b"authorization")
        key = self._keyring.authorize(authorization.decode("latin-1") if authorization else None, "infer")
        scope["api_key_name"] = key.name
        self._lifecycle.admit()
        check_media(scope, b"application/json")
        body = parse_body(ClassifyBody, await read_body(scope, receive, self._limits.body))
        call = to_call(
            body,
            scope["request_id"],
            self._limits,
            request_key=header(scope, b"x-request-key"),
            min_revision=header(scope, b"x-min-revision"),
        )
        answer = await self._answer(call, receive)
        if answer is None:
            return  # nobody listens any more
        self._metrics.task_requests.labels(self._metrics.task_label(call.task_id)).inc()
        headers = {
            "x-prompt-version": answer.slot.version,
            "x-store-revision": answer.revision,
            "server-timing": _server_timing(answer),
        }
        await send_bytes(send, 200, "application/json", to_bytes(call, answer), headers)

    async def _answer(self, call: Call, receive: Receive) -> Answer | None:
        watch = _Watch(receive, self._limits.timeout)
        try:
            return await self._engine.classify(call)
        except asyncio.CancelledError:
            if watch.verdict is None:
                raise  # cancelled by someone else
            watch.task.uncancel()
            if watch.verdict == "late":
                raise RequestTimeout("the answer was not ready in time", retry_after=1.0) from None
            self._metrics.clients_gone.inc()
            return None
        finally:
            watch.close()


class _Watch:
    """Cancels the request's task when its caller hangs up or its time is over."""

    def __init__(self, receive: Receive, timeout: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.verdict: Literal["gone", "late"] | None = None
        self._receive, self._timeout = receive, timeout
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(min(_PATIENCE, timeout), self._begin)

    def close(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._timeout - _PATIENCE)):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
            self.verdict = "gone"
        except TimeoutError:
            self.verdict = "late"
        self.task.cancel()


def to_call(
    body: ClassifyBody,
    request_id: str,
    limits: ClassifyLimits,
    *,
    request_key: bytes | None = None,
    min_revision: bytes | None = None,
) -> Call:
    """The body as a Call, or what is wrong with it. `request_key` and `min_revision` are the caller's headers."""
    task_id = body.task_id if body.task_id is not None else body.model
    if task_id is None:
        raise InvalidRequest("task_id is missing", param="task_id")
    if body.model is not None and body.task_id is not None and body.model != body.task_id:
        raise InvalidRequest("task_id and model name different tasks", param="model")
    if body.use_activation is False:
        raise NotOffered(
            "use_activation can only be true: raw logits are not offered", param="use_activation"
        )
    max_tokens = body.truncate_prompt_tokens
    if max_tokens == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens must be -1 or at least 1", param="truncate_prompt_tokens"
        )
    if body.request_id is not None and not REQUEST_ID.fullmatch(body.request_id):
        raise InvalidRequest(f"request_id: {_KEY_FORM}", param="request_id")
    key = None if request_key is None else request_key.decode("latin-1")
    if key is not None and not REQUEST_ID.fullmatch(key):
        raise InvalidRequest(f"X-Request-Key: {_KEY_FORM}", param="X-Request-Key")
    texts, pairs = _texts(body.input, limits)
    return Call(
        task_id,
        texts,
        pairs,
        body.version,
        None if max_tokens == -1 else max_tokens,
        body.request_id or request_id,
        key or body.request_id or request_id,
        _min_revision(body.min_revision, min_revision),
    )


def _min_revision(field: str | None, given: bytes | None) -> Revision | None:
    text = given.decode("latin-1") if given is not None else field
    if text is None:
        return None
    if field is not None and field != text:
        raise InvalidRequest("min_revision and X-Min-Revision differ", param="min_revision")
    try:
        return parse_revision(text)
    except ValueError as error:
        raise InvalidRequest(
            f"min_revision: {error}, as X-Store-Revision has it", param="min_revision"
        ) from None


def _texts(
    given: str | list[str | TextPair], limits: ClassifyLimits
) -> tuple[list[str], list[str | None] | None]:
    if isinstance(given, str):
        texts, pairs = [given], None
    else:
        if len(given) > limits.max_inputs:
            raise TooManyInputs(f"at most {limits.max_inputs} texts in one request", param="input")
        texts = [item if isinstance(item, str) else item.text for item in given]
        second = [None if isinstance(item, str) else item.text_pair for item in given]
        pairs = second if any(text is not None for text in second) else None
    if not texts:
        raise EmptyInput("input is an empty list", param="input")
    for at, text in enumerate(texts):
        _check_text(text, at, limits)
    for at, pair in enumerate(pairs or ()):
        if pair is not None:
            _check_text(pair, at, limits)
    return texts, pairs


def _check_text(text: str, at: int, limits: ClassifyLimits) -> None:
    if len(text) > limits.max_text_chars:
        raise TextTooLong(f"input {at} is longer than {limits.max_text_chars} characters", param="input")
    if not text or text.isspace():
        raise EmptyInput(f"input {at} is empty", param="input")


def _server_timing(answer: Answer) -> str:
    spent = {"queue": answer.queued, "tokenize": answer.tokenize, "forward": answer.forward}
    return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in spent.items())


def to_bytes(call: Call, answer: Answer) -> bytes:
    """The answer as JSON."""
    manifest, labels = answer.slot.manifest, answer.slot.manifest.labels
    classes = len(labels)
    data: list[dict[str, Any]] = []
    for index, scores in enumerate(answer.scores):
        best = max(scores)
        item: dict[str, Any] = {
            "index": index,
            "label": labels[scores.index(best)],
            "score": best,
            "probs": scores,
            "num_classes": classes,
        }
        if manifest.multi_label:
            item["labels"] = manifest.chosen_labels(scores)
        if answer.truncated[index]:
            item["truncated"] = True
        data.append(item)
    return orjson.dumps(
        {
            "id": f"classify-{call.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": call.task_id,
            "task_id": call.task_id,
            "version": answer.slot.version,
            "labels": answer.slot.labels_json,
            "data": data,
            "usage": {
                "prompt_tokens": answer.prompt_tokens,
                "virtual_tokens": answer.virtual_tokens,
                "total_tokens": answer.prompt_tokens + answer.virtual_tokens,
                "completion_tokens": 0,
            },
        }
    )
