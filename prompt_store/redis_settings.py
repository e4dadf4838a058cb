"""A Redis's settings as a check-up reads them: from CONFIG, else from INFO, else unknown.

Owns: where a setting is found, and how a change to one is written down. Must not know: which values are good.
"""

from typing import Final

from prompt_store.finding import UNKNOWN, Finding
from prompt_store.redis_probe import RedisFacts

# What INFO says too, for users who may not ask CONFIG.
_IN_INFO: Final = {
    "maxmemory": "maxmemory",
    "maxmemory-policy": "maxmemory_policy",
    "maxclients": "maxclients",
}


class RedisSettings:
    """The settings among a Redis's answers."""

    def __init__(self, facts: RedisFacts) -> None:
        self._facts = facts

    def text(self, name: str) -> str | None:
        """A setting's value; None where it could not be asked."""
        if name in self._facts.config:
            return self._facts.config[name]
        info = self._facts.info
        if name == "appendonly" and "aof_enabled" in info:
            return "yes" if str(info["aof_enabled"]) == "1" else "no"
        found = info.get(_IN_INFO.get(name, ""))
        return None if found is None else str(found)

    def number(self, name: str) -> int | None:
        """A setting's value where it is a whole number."""
        value = self.text(name)
        return int(value) if value is not None and value.isdecimal() else None

    def unknown(self, name: str) -> Finding:
        """That this setting could not be asked."""
        return unknown(name, self._facts, "+config|get")


def unknown(name: str, facts: RedisFacts, right: str) -> Finding:
    """That this user may not ask, and the right that it would need."""
    return Finding(name, UNKNOWN, "warning", f"let this user ask: redis-cli ACL SETUSER {facts.user} {right}")


def config_set(name: str, value: str) -> str:
    """The command that changes a setting at once. It holds until Redis restarts, unless redis.conf says so too."""
    return f"redis-cli CONFIG SET {name} {value}"


def size(number: int) -> str:
    """Bytes as a person reads them."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 2**power:
            return f"{number / 2**power:.4g} {unit}"
    return f"{number} bytes"
