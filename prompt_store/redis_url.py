"""The URL of a store in Redis, and what it says.

Owns: the grammar of these URLs. Must not know: connections.

    redis://[user:password@]host[:6379][/database][?option=value&…]
    rediss://…                                            the same over TLS
    redis+sentinel://[user:password@]host[:26379],host[:26379]…/service[/database][?…]
    rediss+sentinel://…

    prefix             of every key (promptmux:); two stores in one database need two
    replicas           how many replicas are waited for after each write (0)
    replicas_timeout   seconds that a write waits for them (1)
    timeout            seconds that Redis may take for an answer (5); for a publish one more for each MiB of it
    ca, cert, key      files for TLS: the authority that signed Redis's certificate; our own certificate and its key
    sentinel_user, sentinel_password    where the Sentinels ask for them
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from prompt_store.errors import PromptStoreError

SCHEMES: Final = ("redis", "rediss", "redis+sentinel", "rediss+sentinel")
_OPTIONS: Final = (
    "prefix", "replicas", "replicas_timeout", "timeout", "ca", "cert", "key", "sentinel_user", "sentinel_password",
)  # fmt: skip
_HIDDEN: Final = "********"
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:{}-]{1,64}")


@dataclass(frozen=True, slots=True, repr=False)
class RedisPlace:
    """Where a store is, and how to speak to it. Not shown by `repr`: it holds passwords."""

    hosts: tuple[tuple[str, int], ...]
    service: str | None  # the Sentinels' name of the primary; None: the one host is the primary
    database: int
    user: str | None
    password: str | None
    tls: Mapping[str, Any] | None  # redis-py's arguments; None without TLS
    prefix: str
    replicas: int
    replicas_timeout: float
    timeout: float
    sentinel_auth: Mapping[str, str]


def parse_redis_url(url: str) -> RedisPlace:
    """The place that `url` names. PromptStoreError, never repeating what may be a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise PromptStoreError(
            "the store's URL is not well formed: write signs such as / ? # @ [ in a password as %2F %3F %23 %40 %5B"
        ) from None
    scheme = parts.scheme
    sentinel, tls = scheme.endswith("+sentinel"), scheme.startswith("rediss")
    options = _options(parts.query)
    path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
    service = None
    if sentinel:
        if not path:
            raise PromptStoreError(
                "a Sentinel store names the service: redis+sentinel://host1,host2/service/database"
            )
        service = path.pop(0)
    if len(path) > 1 or (path and not (path[0].isascii() and path[0].isdigit() and len(path[0]) < 6)):
        raise PromptStoreError("the store's URL: expected a database's number after the last slash")
    prefix = options.get("prefix", "promptmux:")
    if not _PREFIX.fullmatch(prefix):
        raise PromptStoreError("the store's URL: prefix: expected 1 to 64 of A-Z a-z 0-9 . _ : { } -")
    files: dict[str, str] = {name: options[name] for name in ("ca", "cert", "key") if name in options}
    if files and not tls:
        raise PromptStoreError("the store's URL: ca, cert and key are for rediss://, which speaks TLS")
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return RedisPlace(
        hosts=_hosts(parts.netloc.rpartition("@")[2], 26379 if sentinel else 6379, many=sentinel),
        service=service,
        database=int(path[0]) if path else 0,
        user=unquote(user) or None,
        password=unquote(password) or None,
        tls=_tls(files) if tls else None,
        prefix=prefix,
        replicas=int(_number(options, "replicas", 0, 0, 100)),
        replicas_timeout=_number(options, "replicas_timeout", 1.0, 0.001, 60),
        timeout=_number(options, "timeout", 5.0, 0.1, 600),
        sentinel_auth={
            argument: options[name]
            for name, argument in (("sentinel_user", "username"), ("sentinel_password", "password"))
            if name in options
        },
    )


def without_secrets(url: str) -> str:
    """`url` as it may be shown and logged: its passwords are hidden. A URL of any kind of store will do.

    By the text alone, since a URL that is not well formed has a password, too.
    """
    if scheme := slipped_scheme(url):
        return f"{scheme}:{_HIDDEN}"  # nobody knows which part of it is the password
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        return url
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    if at and colon:
        rest = f"{user}:{_HIDDEN}@{place}"
    return f"{scheme}://{re.sub(r'(?<=password=)[^&]*', _HIDDEN, rest)}"


def slipped_scheme(url: str) -> str | None:
    """The scheme that `url` begins with where the two slashes behind it are missing: no path was meant."""
    scheme, colon, rest = url.strip().partition(":")
    known = scheme.lower() in ("file", *SCHEMES)
    return scheme.lower() if known and colon and not rest.startswith("//") else None


def _options(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) != len(pairs) or not options.keys() <= set(_OPTIONS):
        raise PromptStoreError(f"the store's URL: expected each option once, of {', '.join(_OPTIONS)}")
    return options


def _hosts(text: str, port: int, *, many: bool) -> tuple[tuple[str, int], ...]:
    hosts = []
    for one in text.split(",") if many else [text]:
        try:
            parsed = urlsplit(f"//{one}")
            name, number = parsed.hostname, parsed.port
        except ValueError:
            name, number = None, None
        if not name or "," in one:
            raise PromptStoreError("the store's URL: expected host or host:port after the two slashes")
        hosts.append((name, number or port))
    return tuple(hosts)


def _tls(files: Mapping[str, str]) -> dict[str, Any]:
    given = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
    return {"ssl": True, **{given[name]: path for name, path in files.items()}}


def _number(options: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise PromptStoreError(f"the store's URL: {name}: expected a number of {least:g} to {most:g}")
    return value
