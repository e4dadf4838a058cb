import json

import pytest

from server.errors import InvalidJson, InvalidRequest, NotOffered, ServerError
from server.schemas import AliasBody, ChoiceBody, ClassifyBody, TextPair, parse_body, parse_json


def parse(value: object) -> ClassifyBody:
    return parse_body(ClassifyBody, json.dumps(value).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}', b'"\\ud800"', b'{"\\udfff": 1}', b'"\xff"', b'"\xed\xa0\x80"', b"\xef\xbb\xbf{}",
        b"[" * 10_000, b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b"1" * 5000, b"1e999",
        b"'a'", b"{}x", b'{"a": 01}', b"\x00", b'"\t"', '{"a":1}'.encode("utf-16"),
    ],
    ids=range(24),
)  # fmt: skip
def test_what_is_no_json_or_json_with_two_meanings_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        parse_json(body)


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "😀", "\U0010ffff", "￿", "‮", "é", "\x7f", "٣"])
def test_any_unicode_is_text(text: str) -> None:
    assert parse({"task_id": "t", "input": text}).input == text
    assert parse_body(ClassifyBody, json.dumps({"input": text}, ensure_ascii=False).encode()).input == text


def test_the_products_form_and_vllms() -> None:
    assert parse({"task_id": "t", "input": "x"}).task_id == "t"
    both = parse(
        {"model": "t", "input": ["x", {"text": "a", "text_pair": "b"}], "truncate_prompt_tokens": -1}
    )
    assert both.input == ["x", TextPair(text="a", text_pair="b")]
    whole = {
        "model": "t",
        "input": "x",
        "truncate_prompt_tokens": 4,
        "add_special_tokens": True,
        "priority": 1,
    }
    parse({**whole, "use_activation": True, "request_id": "r", "user": "u", "cache_salt": "s"})


@pytest.mark.parametrize(
    ("value", "param", "kind"),
    [
        ({"task_id": "t"}, "input", InvalidRequest),
        ({"task_id": "t", "input": None}, "input", InvalidRequest),
        ({"task_id": "t", "input": 5}, "input", InvalidRequest),
        ({"task_id": "t", "input": {"text": "SECRET"}}, "input", InvalidRequest),
        ({"task_id": "t", "input": ["ok", ["SECRET"]]}, "input", InvalidRequest),
        ({"task_id": "t", "input": [{"text": "a", "SECRET": 1}]}, "input", InvalidRequest),
        ({"task_id": "t", "input": [1, 2]}, "input", NotOffered),
        ({"task_id": "t", "input": [[1, 2], [3]]}, "input", NotOffered),
        ({"task_id": 7, "input": "x"}, "task_id", InvalidRequest),
        ({"task_id": "t", "input": "x", "SECRET": 1}, None, InvalidRequest),
        (
            {"task_id": "t", "input": "x", "truncate_prompt_tokens": -2},
            "truncate_prompt_tokens",
            InvalidRequest,
        ),
        (
            {"task_id": "t", "input": "x", "truncate_prompt_tokens": "5"},
            "truncate_prompt_tokens",
            InvalidRequest,
        ),
        (
            {"task_id": "t", "input": "x", "truncate_prompt_tokens": 1.5},
            "truncate_prompt_tokens",
            InvalidRequest,
        ),
        ({"task_id": "t", "input": "x", "add_special_tokens": False}, "add_special_tokens", NotOffered),
        ({"task_id": "t", "input": "x", "priority": "SECRET"}, "priority", InvalidRequest),
        ([], None, InvalidRequest),
        ("SECRET", None, InvalidRequest),
        (None, None, InvalidRequest),
    ],
)
def test_a_bad_body_says_what_and_never_repeats_it(
    value: object, param: str | None, kind: type[ServerError]
) -> None:
    with pytest.raises(kind) as caught:
        parse(value)
    assert caught.value.param == param
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("version", ["", "abc", "A" * 64, "0" * 63, "0" * 64 + "\n", 5, None])
def test_a_rollback_names_a_version(version: object) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(ChoiceBody, json.dumps({"version": version}).encode())


def test_alias_bodies() -> None:
    parse_body(AliasBody, json.dumps({"version": "0" * 64}).encode())
    parse_body(AliasBody, json.dumps({"targets": [{"version": "0" * 64, "weight": 3}]}).encode())
    for bad in ({"targets": []}, {"targets": [{"version": "0" * 64, "weight": 0}]}, {"versions": 1}):
        with pytest.raises(InvalidRequest):
            parse_body(AliasBody, json.dumps(bad).encode())
