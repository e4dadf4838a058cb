import json

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import prompt_store
import server.errors
from prompt_store import PromptStoreError, RevisionConflict, StoreUnavailable
from server.errors import Overloaded, ServerError
from server.problem import problem


def tree(base: type[Exception]) -> list[type[Exception]]:
    return [base, *(kind for child in base.__subclasses__() for kind in tree(child))]


SERVER = [kind for kind in tree(ServerError) if kind.__module__ == "server.errors"]
STORE = [kind for kind in tree(PromptStoreError) if kind.__module__ == "prompt_store.errors"]


def test_the_docstring_shows_the_whole_tree() -> None:
    for kind in SERVER:
        line = next(
            line for line in (server.errors.__doc__ or "").splitlines() if f" {kind.__name__} " in f" {line}"
        )
        assert f"{kind.status} {kind.code}" in line


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in SERVER + STORE]
    assert len(codes) == len(set(codes))


def test_only_the_server_and_its_prompts_are_to_blame_for_a_5xx() -> None:
    blamed = {kind.code for kind in SERVER if kind.status >= 500}
    assert blamed == {
        "internal_error", "inference_failed", "numerical_error", "unavailable", "not_ready", "draining",
        "request_timeout", "prompt_unavailable", "revision_not_reached",
    }  # fmt: skip


def test_a_body_has_every_member() -> None:
    status, headers, body = problem(server.errors.InvalidRequest("what is wrong", param="input"), "r1")
    assert (status, headers) == (422, {})
    assert json.loads(body) == {
        "type": "urn:promptmux:error:invalid_request",
        "title": "Invalid request",
        "status": 422,
        "detail": "what is wrong",
        "code": "invalid_request",
        "request_id": "r1",
        "error": {
            "message": "what is wrong",
            "type": "UnprocessableEntityError",
            "param": "input",
            "code": 422,
        },
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("/secret/path"), 500, "internal_error"),
        (KeyError("secret"), 500, "internal_error"),
        (HTTPException(404, "secret"), 404, "unknown_route"),
        (HTTPException(405), 405, "method_not_allowed"),
        (
            RequestValidationError([{"loc": ("query", "limit"), "msg": "secret", "input": "secret"}]),
            422,
            "invalid_request",
        ),
        (prompt_store.UnknownTask("no such task"), 404, "unknown_task"),
        (StoreUnavailable("down", retry_after=2.5), 503, "store_unavailable"),
    ],
)
def test_any_exception_becomes_an_answer_that_gives_nothing_away(
    error: Exception, status: int, code: str
) -> None:
    got, _, body = problem(error, "r1")
    assert (got, json.loads(body)["code"]) == (status, code)
    assert b"secret" not in body


def test_headers() -> None:
    assert problem(Overloaded("full", retry_after=2.1), "r")[1] == {"Retry-After": "3"}
    assert problem(StoreUnavailable("down", retry_after=0.2), "r")[1] == {"Retry-After": "1"}
    assert problem(server.errors.Unauthenticated("no"), "r")[1] == {"WWW-Authenticate": "Bearer"}


def test_a_conflict_says_where_the_alias_is() -> None:
    _, headers, body = problem(RevisionConflict("moved", current=7), "r")
    assert headers == {"ETag": '"7"'}
    assert json.loads(body)["current_revision"] == 7
