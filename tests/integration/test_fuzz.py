"""Bodies that hypothesis makes up: whatever they are, the answer is no 5xx and no echo."""

import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.integration.conftest import ServerProcess

FIELDS = [
    "task_id",
    "model",
    "input",
    "version",
    "truncate_prompt_tokens",
    "request_id",
    "add_special_tokens",
]
FIELDS += [
    "use_activation",
    "priority",
    "user",
    "cache_salt",
    "text",
    "text_pair",
    "messages",
    "__proto__",
    "",
]
TEXT = st.text(st.characters(), max_size=30)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["sentiment", "current"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | TEXT, inner, max_size=4)
    ),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {"task_id": st.just("sentiment"), "input": TEXT | st.lists(TEXT, max_size=3) | VALUES},
    optional={name: VALUES for name in FIELDS if name not in ("task_id", "input")},
)
CODES = {
    "invalid_json", "invalid_request", "empty_input", "not_offered", "too_many_inputs", "text_too_long",
    "body_too_large", "unknown_task", "unknown_version", "unknown_alias", "invalid_task_id", "invalid_alias",
}  # fmt: skip


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=600) as client:
        yield client


def check(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500
    if answer.status_code != 200:
        assert answer.json()["code"] in CODES
        assert answer.headers["content-type"] == "application/problem+json"


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(value=VALUES | NEARLY)
@example(value={"task_id": "sentiment", "input": "x", "truncate_prompt_tokens": 10**30})
@example(value={"task_id": "sentiment", "input": "x", "priority": -(10**100)})
def test_any_json(client: httpx.Client, value: object) -> None:
    check(client, json.dumps(value).encode())


@FUZZ
@given(body=st.binary(max_size=200))
def test_any_bytes(client: httpx.Client, body: bytes) -> None:
    check(client, body)


@FUZZ
@given(at=st.integers(0, 60), byte=st.integers(0, 255), cut=st.integers(0, 60))
def test_nearly_good_bytes(client: httpx.Client, at: int, byte: int, cut: int) -> None:
    body = bytearray(b'{"task_id": "sentiment", "input": ["a text", {"text": "b"}]}')
    body[at % len(body)] = byte
    check(client, bytes(body[: len(body) - cut % 3]))
