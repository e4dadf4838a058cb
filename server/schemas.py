"""The bodies that the API takes and gives, and reading them from bytes.

Owns: field names, their types and documentation, JSON's strictness, and messages about bad bodies that never
repeat what was sent. Must not know: routes, the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompt_store.strict_json import strict_json
from server.errors import InvalidJson, InvalidRequest, NotOffered

VERSION_PATTERN = r"^[0-9a-f]{64}$"
M = TypeVar("M", bound="Body")


class Body(BaseModel):
    """A request body: unknown fields are refused, types are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPair(Body):
    """A text, and the second text of tasks that compare two."""

    text: str
    text_pair: str | None = None


class ClassifyBody(Body):
    """`POST /classify`: this product's form, and vLLM's."""

    task_id: str | None = Field(None, description="The task. `model` is accepted for it.")
    model: str | None = Field(None, description="vLLM's name for `task_id`.")
    input: str | list[str | TextPair] = Field(
        description="One text, or a list of texts and of {text, text_pair} objects. No token ids."
    )
    version: str | None = Field(
        None, description="An alias of the task or the SHA-256 of a version; `current` when absent."
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        description="At most this many tokens of each row (virtual tokens not counted; the template's own tokens "
        "always stay); -1 or absent: as many "
        "as the task and the model take. Longer texts are cut and marked `truncated`.",
    )
    request_id: str | None = Field(
        None,
        description="Comes back in `id`; without the header `X-Request-Key` also the draw between weighted versions.",
    )
    min_revision: str | None = Field(
        None,
        description="`<epoch>:<number>`, as a write's X-Store-Revision has it: answer from a catalogue that has seen "
        "this revision, or 503 revision_not_reached; 412 revision_lost where the store has lost that history. The "
        "header X-Min-Revision says the same.",
    )
    add_special_tokens: Literal[True] = Field(
        True, description="The prompt's template decides on special tokens; false is refused."
    )
    use_activation: bool | None = Field(None, description="Scores are probabilities; false is refused.")
    priority: int = Field(0, description="Accepted for vLLM's clients and ignored.")
    user: str | None = Field(None, description="Accepted for vLLM's clients and ignored.")
    cache_salt: str | None = Field(
        None, description="Accepted for vLLM's clients and ignored: answers are not cached."
    )


class Result(BaseModel):
    """The answer for one text."""

    index: int
    label: str = Field(description="The label with the highest score.")
    score: float
    probs: list[float] = Field(description="One per label, in the order of `labels`.")
    num_classes: int
    labels: list[str] | None = Field(
        None, description="Multi-label tasks only: every label at its threshold or above."
    )
    truncated: bool | None = Field(None, description="true when the text was cut; absent otherwise.")


class Usage(BaseModel):
    """Tokens of the whole request."""

    prompt_tokens: int = Field(description="Of the texts and their templates, each text once.")
    virtual_tokens: int = Field(
        description="Soft tokens and prefixes; of an ensemble, those of all its members."
    )
    total_tokens: int
    completion_tokens: Literal[0] = 0


class ClassifyAnswer(BaseModel):
    """The answer to `POST /classify`, a superset of vLLM's."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    task_id: str
    version: str = Field(description="SHA-256 of the prompt file that gave this answer.")
    labels: list[str]
    data: list[Result]
    usage: Usage


class Model(BaseModel):
    """A task in the form of OpenAI's model list."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "promptmux"
    version: str | None = Field(description="What `current` leads to; its largest part when it is weighted.")


class ModelList(BaseModel):
    """Every task that is served."""

    object: Literal["list"] = "list"
    data: list[Model]


class ProblemBody(BaseModel):
    """RFC 9457 problem details; `error` is for vLLM's clients."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    error: dict[str, str | int | None]


class TargetBody(Body):
    """A version and its share."""

    version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    weight: int = Field(1, ge=1, le=1_000_000)


class AliasBody(Body):
    """Where an alias leads: one version, or several by weight."""

    version: Annotated[str, Field(pattern=VERSION_PATTERN)] | None = None
    targets: list[TargetBody] | None = Field(None, min_length=1, max_length=16)


class ChoiceBody(Body):
    """The version that an alias is to lead to, by name: `the one before` would mean two things to two operators."""

    version: Annotated[str, Field(pattern=VERSION_PATTERN)]
    alias: str = "current"


def parse_json(body: bytes) -> object:
    """Strict JSON: UTF-8, no repeated keys, no NaN, no lone surrogates; InvalidJson otherwise."""
    try:
        orjson.loads(body)  # stricter than the standard library on encoding, surrogates and depth
        return strict_json(body.decode())
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"the body is not JSON (line {error.lineno}, column {error.colno})") from None
    except ValueError as error:
        raise InvalidJson(f"the body is not JSON that has one meaning: {error}") from None


def parse_body(model: type[M], body: bytes) -> M:
    """The body as `model`. InvalidJson or InvalidRequest."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise explain(error, model, value) from None


def explain(error: ValidationError, model: type[Body], value: Mapping[str, Any]) -> InvalidRequest:
    """A validation error as one sentence, without anything of the input."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    known = name in model.model_fields
    if first["type"] == "extra_forbidden" and not known:
        return InvalidRequest(
            f"there is a field that this route does not know; it knows {', '.join(model.model_fields)}"
        )
    if name == "input":
        return _explain_input(value.get("input"))
    if name == "add_special_tokens":
        return NotOffered("add_special_tokens can only be true: the task's template decides", param=name)
    where = name if known else "the body"
    return InvalidRequest(f"{where}: {first['msg'].lower()}", param=name if known else None)


def _explain_input(value: object) -> InvalidRequest:
    if isinstance(value, list) and value and all(isinstance(item, int | list) for item in value):
        return NotOffered("token ids are not accepted: send texts, the server tokenises them", param="input")
    if value is None:
        return InvalidRequest("input is missing", param="input")
    return InvalidRequest(
        "input must be a text, or a list of texts and of {text, text_pair} objects", param="input"
    )
