"""What a store's URL may be shown as."""

import pytest

from prompt_store.redis_url import without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:secret@host:1/0", "redis://ann:********@host:1/0"),
        ("redis://:secret@host", "redis://:********@host"),
        (
            "rediss+sentinel://ann:secret@a,b:2/main/0?sentinel_user=u&sentinel_password=secret&replicas=1",
            "rediss+sentinel://ann:********@a,b:2/main/0?sentinel_user=u&sentinel_password=********&replicas=1",
        ),
        ("redis://host/1?prefix={a}:", "redis://host/1?prefix={a}:"),
        ("file:///a%20folder/b", "file:///a%20folder/b"),
        ("a folder", "a folder"),
    ],
)
def test_secrets_are_hidden(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
    assert "secret@" not in shown
