from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_store import InvalidAlias, InvalidTaskId, PromptStoreError, check_alias, check_task_id, is_version

CHECKS = [(check_task_id, InvalidTaskId), (check_alias, InvalidAlias)]
BAD = {
    "empty": "",
    "65 characters": "a" * 65,
    "10 kB": "a" * 10_000,
    "upper case": "Sentiment",
    "trailing newline": "a\n",
    "leading newline": "\na",
    "NUL": "a\0",
    "parent folder": "../x",
    "path": "a/b",
    "encoded path": "a%2fb",
    "backslash": "a\\b",
    "leading dot": ".a",
    "leading hyphen": "-a",
    "space": "a b",
    "Cyrillic а": "s\u0430sh",
    "Arabic digit": "a\u0663",
    "full-width letter": "\uff41",
    "lone surrogate": "a\ud800",
    "emoji": "a🙂",
    "ANSI": "a\x1b[31m",
    "carriage return": "a\rb",
    "wildcard": "a*",
    "quote": "a'--",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize(("check", "error"), CHECKS)
def test_a_bad_name_is_refused_and_not_repeated(
    check: Callable[[str], str], error: type[PromptStoreError], bad: str
) -> None:
    with pytest.raises(error) as caught:
        check(bad)
    assert len(bad) < 4 or bad not in str(caught.value)


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_a_good_name_passes_unchanged(name: str) -> None:
    assert check_task_id(name) == check_alias(name) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0" * 64, True),
        ("af09" * 16, True),
        ("0" * 63, False),
        ("0" * 65, False),
        ("A" * 64, False),
        ("0" * 64 + "\n", False),
        ("g" * 64, False),
        ("", False),
        ("\u0660" * 64, False),
    ],
)
def test_a_version_is_64_digits_of_lower_case_hex(text: str, expected: bool) -> None:
    assert is_version(text) is expected
