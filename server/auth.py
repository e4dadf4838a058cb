"""Who may call: API keys, kept as SHA-256 hashes, with scopes.

Owns: the form of a key, reading keys, and the check. Must not know: routes, settings, the rest of the server.
A key is written `name:scope+scope:sha256-of-the-key`; the key itself is shown once and kept nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from server.errors import Forbidden, Unauthenticated

# `metrics` reads /metrics and nothing else: whoever scrapes keeps a secret that changes nothing. `admin` reads it, too.
SCOPES: Final = ("infer", "admin", "metrics")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One caller: a name for the log and the history, what it may do, and the hash of its key."""

    name: str
    scopes: frozenset[str]
    digest: bytes


class Keyring:
    """All keys of this server. Without any, everything is allowed, and the server binds to loopback only."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)
        self._open = ApiKey("local", frozenset(SCOPES), b"")

    def __len__(self) -> int:
        return len(self._keys)

    def authorize(self, header: str | None, *scopes: str) -> ApiKey:
        """The key in an `Authorization` header, if it has one of the scopes; Unauthenticated or Forbidden if not."""
        if not self._keys:
            return self._open
        kind, _, token = (header or "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthenticated("send an API key as `Authorization: Bearer <key>`")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest().encode()
        found: ApiKey | None = None
        for key in self._keys:  # all of them, always: the time taken says nothing about which one matched
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthenticated("the API key is not known")
        if found.scopes.isdisjoint(scopes):
            raise Forbidden(f"the API key lacks the scope {' or '.join(scopes)}")
        return found


def parse_keys(lines: Iterable[str]) -> tuple[ApiKey, ...]:
    """Read `name:scopes:sha256` lines; blank ones and `#` comments are skipped. ValueError names the line."""
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, rest = text.partition(":")
        scopes, _, digest = rest.partition(":")
        wanted = frozenset(scopes.split("+"))
        # The line itself stays out of the message: someone may have put the key where its hash belongs.
        if not _NAME.fullmatch(name) or not wanted <= frozenset(SCOPES) or not _DIGEST.fullmatch(digest):
            raise ValueError(
                f"API key {number} is not `name:scopes:sha256-hex` with scopes from {'+'.join(SCOPES)}"
            )
        if any(key.name == name for key in keys):
            raise ValueError(f"API key {number} repeats a name")
        keys.append(ApiKey(name, wanted, digest.encode()))
    return tuple(keys)


def new_key(name: str, scopes: Sequence[str]) -> tuple[str, str]:
    """A fresh random key and the line for the settings that admits it."""
    token = "pmx_" + secrets.token_urlsafe(32)
    line = f"{name}:{'+'.join(scopes)}:{hashlib.sha256(token.encode()).hexdigest()}"
    parse_keys([line])
    return token, line


def is_loopback(host: str) -> bool:
    """Whether listening on `host` admits callers from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
