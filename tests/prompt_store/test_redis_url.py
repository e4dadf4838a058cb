"""The URL of a store in Redis: what each part means, and what is refused."""

import pytest

from prompt_store import PromptStoreError, open_store
from prompt_store.redis_url import parse_redis_url, without_secrets


def test_a_short_url_has_defaults() -> None:
    place = parse_redis_url("redis://store.example")
    assert (place.hosts, place.database, place.prefix) == ((("store.example", 6379),), 0, "promptmux:")
    assert (place.user, place.password, place.tls, place.service, place.replicas) == (
        None,
        None,
        None,
        None,
        0,
    )


def test_a_long_url_says_everything() -> None:
    place = parse_redis_url(
        "rediss://ann:p%40ss%3A@[::1]:7000/3?prefix=a:&replicas=2&replicas_timeout=0.5&timeout=9&ca=/ca.pem&cert=/c&key=/k"
    )
    assert (place.hosts, place.database, place.prefix) == ((("::1", 7000),), 3, "a:")
    assert (place.user, place.password) == ("ann", "p@ss:")
    assert (place.replicas, place.replicas_timeout, place.timeout) == (2, 0.5, 9)
    assert place.tls == {"ssl": True, "ssl_ca_certs": "/ca.pem", "ssl_certfile": "/c", "ssl_keyfile": "/k"}


def test_a_password_without_a_user() -> None:
    place = parse_redis_url("redis://:secret@localhost/1")
    assert (place.user, place.password, place.database) == (None, "secret", 1)


def test_sentinels() -> None:
    place = parse_redis_url(
        "redis+sentinel://:pw@one,two:26380/mymaster/2?sentinel_user=s&sentinel_password=sp&prefix={p}:"
    )
    assert place.hosts == (("one", 26379), ("two", 26380))
    assert (place.service, place.database, place.password, place.prefix) == ("mymaster", 2, "pw", "{p}:")
    assert place.sentinel_auth == {"username": "s", "password": "sp"}


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://:6379",
        "redis://host:port",
        "redis://host:99999",
        "redis://a,b",
        "redis://host/name",
        "redis://host/1/2",
        "redis://:x℀y@host",
        "redis://:x[y@host",
        "redis://host/²",
        "redis://host?unknown=hunter2",
        "redis://host?timeout=1&timeout=2",
        "redis://host?timeout=0",
        "redis://host?timeout=nan",
        "redis://host?replicas=-1",
        "redis://host?replicas=many",
        "redis://host?prefix=",
        "redis://host?prefix=a b",
        "redis://host?ca=/ca.pem",
        "redis+sentinel://one,two",
        "redis+sentinel://one,,two/mymaster",
    ],
)
def test_what_makes_no_sense_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(PromptStoreError) as caught:
        parse_redis_url(url.replace("://", "://u:hunter2@", 1))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    ["redis:/u:hunter2@host", "rediss:u:hunter2@host", " redis+sentinel:/:hunter2@a/main", "file:/hunter2"],
)
def test_a_url_that_lacks_its_slashes_is_no_path(url: str) -> None:
    with pytest.raises(PromptStoreError, match="expected two slashes") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_a_place_does_not_show_its_password() -> None:
    assert "hunter2" not in repr(parse_redis_url("redis://:hunter2@host"))


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
        ("redis://:se/cret@host/0", "redis://:********@host/0"),
        ("redis://:se?cret@host", "redis://:********@host"),
        ("redis://:se#cret@host", "redis://:********@host"),
        ("redis://:se℀cret@host", "redis://:********@host"),
        ("redis://:se[cret@host", "redis://:********@host"),
        ("https://ann:secret@host", "https://ann:********@host"),
        ("file:///a%20folder/b", "file:///a%20folder/b"),
        ("a folder", "a folder"),
        ("redis:/ann:secret@host", "redis:********"),
        ("REDISS:ann:secret@host", "rediss:********"),
        (" redis+sentinel:/:secret@a,b/main", "redis+sentinel:********"),
        ("redis", "redis"),
        ("rediska:folder", "rediska:folder"),
    ],
)
def test_secrets_are_hidden(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
    assert "cret@" not in shown
