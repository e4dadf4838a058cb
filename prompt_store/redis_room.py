"""Whether a Redis has room for a store and for those who use it: memory, eviction, connections, sizes.

Owns: the judgement of these settings. Must not know: how Redis is asked.
"""

from collections.abc import Iterator
from typing import Final

from prompt_store.codec import MAX_BYTES
from prompt_store.finding import Finding, Verdict
from prompt_store.redis_connection import MOST_CONNECTIONS
from prompt_store.redis_probe import RedisFacts
from prompt_store.redis_settings import RedisSettings, config_set, size

_SERVERS: Final = 4  # as many should find room for their connections, at least


def memory(facts: RedisFacts, settings: RedisSettings) -> Iterator[Finding]:
    """How much it may keep, and what it does when that is full."""
    verdict: Verdict
    most, used = settings.number("maxmemory"), facts.info.get("used_memory")
    if most is None:
        yield settings.unknown("maxmemory")
    elif most == 0:
        total = int(facts.info.get("total_system_memory") or 2**31)
        # Half of the machine: a rewrite of the log forks, and needs as much again at worst.
        yield Finding(
            "maxmemory",
            "no limit",
            "warning",
            "without one the kernel ends a Redis that grows; half of this one's machine is:"
            f" {config_set('maxmemory', f'{total // 2**21}mb')}",
        )
    else:
        full = int(used or 0) / most
        found = f"{size(most)}, {full:.0%} used" if used is not None else size(most)
        advice = (
            f"raise it before writes are refused: {config_set('maxmemory', f'{max(1, most * 2 // 2**20)}mb')}"
        )
        verdict = "problem" if full > 0.95 else "warning" if full > 0.8 else "ok"
        yield Finding("maxmemory", found, verdict, "" if verdict == "ok" else advice)
    policy = settings.text("maxmemory-policy")
    if policy is None:
        yield settings.unknown("maxmemory-policy")
    elif policy == "noeviction":
        yield Finding("maxmemory-policy", policy)
    else:
        # The store's keys have no time to live: only the allkeys policies take them.
        verdict = "problem" if policy.startswith("allkeys") else "warning"
        what = (
            "Redis deletes prompts when it is full"
            if verdict == "problem"
            else "Redis may delete others' keys"
        )
        yield Finding(
            "maxmemory-policy", policy, verdict, f"{what}: {config_set('maxmemory-policy', 'noeviction')}"
        )
    if evicted := int(facts.info.get("evicted_keys") or 0):
        yield Finding(
            "evicted keys",
            f"{evicted:,} since it started",
            "warning",
            "see whether prompts were among them: promptmux doctor --deep",
        )


def limits(facts: RedisFacts, settings: RedisSettings) -> Iterator[Finding]:
    """How many may connect, how much one may send, and for how long one may rest."""
    verdict: Verdict
    most = settings.number("maxclients")
    if most is None:
        yield settings.unknown("maxclients")
    else:
        room = max(0, most - facts.others) // MOST_CONNECTIONS
        found = f"{most}, {facts.others} connected: room for {room} servers"
        advice = (
            f"a server opens up to {MOST_CONNECTIONS}; Redis's ulimit -n must allow as many:"
            f" {config_set('maxclients', '10000')}"
        )
        verdict = "problem" if room == 0 else "warning" if room < _SERVERS else "ok"
        yield Finding("maxclients", found, verdict, "" if verdict == "ok" else advice)
    for name, usual in (("proto-max-bulk-len", "512mb"), ("client-query-buffer-limit", "1gb")):
        most = settings.number(name)
        if most is None:
            yield settings.unknown(name)
        elif most < MAX_BYTES * 1.25:  # a prompt file and what comes with it
            advice = f"a prompt file may have {size(MAX_BYTES)}: {config_set(name, usual)}"
            yield Finding(name, size(most), "problem", advice)
        else:
            yield Finding(name, size(most))
    idle = settings.number("timeout")
    if idle is None:
        yield settings.unknown("timeout")
    elif idle:
        yield Finding(
            "timeout",
            f"{idle} s",
            "warning",
            f"Redis closes connections that rest, and the next call on one fails: {config_set('timeout', '0')}",
        )
    else:
        yield Finding("timeout", "0 (none)")
