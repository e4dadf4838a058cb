"""What is wrong with a Redis that keeps a store, and what to change.

Owns: which checks there are, and the judgement of reach, version, rights, network, kind and clock. Must not know: how
Redis is asked.
"""

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from prompt_store.errors import StoreUnavailable
from prompt_store.finding import UNKNOWN, Finding, Verdict
from prompt_store.redis_durability import disk, log_file, reader_of_the_log, replicas
from prompt_store.redis_probe import (
    PINGS,
    RedisFacts,
    SentinelFacts,
    ask_redis,
    ask_sentinels,
    needed_commands,
)
from prompt_store.redis_room import limits, memory
from prompt_store.redis_settings import RedisSettings, unknown
from prompt_store.redis_url import RedisPlace, parse_redis_url

_OLDEST: Final = (6, 2, 0)
# Where the flaw in Lua (CVE-2025-49844) is mended: the first such release of each series.
_LUA_MENDED: Final = {
    "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}
_SLOW_PING: Final = 0.02
_CLOCK_OFF: Final = (1.0, 60.0)  # a warning, a problem
_SCHEMA: Final = 1
_OPTIONAL: Final = frozenset({"CONFIG GET", "INFO"})  # the store lives without them, and says less
_HINTS: Final = frozenset({"PUBLISH", "SUBSCRIBE"})  # it lives without them, and hears later


async def examine_redis(url: str) -> tuple[list[Finding], bool]:
    """Every finding about the Redis at `url`, and whether a store is there to be read.

    A Redis that cannot be reached is a finding, too.
    """
    place = parse_redis_url(url)
    sentinels, redis = await asyncio.gather(ask_sentinels(place), ask_redis(place), return_exceptions=True)
    if isinstance(sentinels, BaseException):
        raise sentinels
    findings = list(_sentinels(place, sentinels))
    if isinstance(redis, StoreUnavailable):
        return [*findings, Finding("Redis", "does not answer", "problem", str(redis))], False
    if isinstance(redis, BaseException):
        raise redis
    return [*findings, *judge(place, redis)], redis.stand is not None


def judge(place: RedisPlace, facts: RedisFacts) -> Iterator[Finding]:
    """What the answers of a Redis mean for a store at `place`."""
    settings = RedisSettings(facts)
    yield _ping(facts.ping_seconds)
    yield from _version(facts)
    yield from _rights(place, facts)
    yield _network(place)
    yield _kind(facts)
    yield _clock(facts.clock_ahead)
    yield from log_file(settings)
    yield from reader_of_the_log(facts, settings)
    yield from disk(facts, settings)
    yield from replicas(place, facts, settings)
    yield from memory(facts, settings)
    yield from limits(facts, settings)
    yield _store(place, facts)


def _ping(seconds: float) -> Finding:
    found = f"{seconds * 1000:.1f} ms (median of {PINGS})"
    if seconds < _SLOW_PING:
        return Finding("ping", found)
    return Finding(
        "ping",
        found,
        "warning",
        "put Redis nearer to the servers, or look at its load: redis-cli SLOWLOG GET",
    )


def _version(facts: RedisFacts) -> Iterator[Finding]:
    maker = "Valkey" if "valkey_version" in facts.info else "Redis"
    text = str(facts.info.get("valkey_version") or facts.info.get("redis_version") or "")
    try:
        version = tuple(int(part) for part in text.split(".")[:3])
    except ValueError:
        version = ()
    if len(version) != 3:
        yield unknown("version", facts, "+info")
        return
    if version < _OLDEST:
        yield Finding(
            "version", f"{maker} {text}", "problem", "upgrade Redis to 6.2 or newer: the scripts need it"
        )
    else:
        yield Finding("version", f"{maker} {text}")
    mended = _LUA_MENDED[maker]
    if version >= mended[-1] or any(version[:2] == one[:2] and version >= one for one in mended):
        yield Finding("Lua flaw", "mended (CVE-2025-49844)")
    else:
        releases = ", ".join(".".join(map(str, one)) for one in mended)
        yield Finding(
            "Lua flaw",
            f"perhaps there (CVE-2025-49844, {maker} {text})",
            "warning",
            f"whoever may run scripts could run code in Redis: upgrade to {releases} or newer. A distribution may have"
            " mended its own release: see its security tracker; else keep EVAL from everybody but promptmux",
        )


def _rights(place: RedisPlace, facts: RedisFacts) -> Iterator[Finding]:
    if facts.refused is None:
        yield Finding(
            "rights",
            UNKNOWN,
            "warning",
            f"this check asks by MULTI: redis-cli ACL SETUSER {facts.user} +multi +discard",
        )
        return
    lacking = facts.refused - _OPTIONAL
    if not lacking:
        yield Finding("rights", f"user {facts.user} may do all that the store does")
        return
    hints = lacking <= _HINTS
    yield Finding(
        "rights",
        f"user {facts.user} may not {', '.join(sorted(lacking))}",
        "warning" if hints else "problem",
        ("servers see changes half a second later; " if hints else "")
        + "as an administrator, and then ACL SAVE (CONFIG REWRITE where there is no aclfile):"
        f" redis-cli ACL SETUSER {facts.user} {_rights_to(lacking, place)}",
    )


def _rights_to(lacking: frozenset[str], place: RedisPlace) -> str:
    """What ACL SETUSER is to add. Keys and channels only where they may be what lacks: who has all may not add one."""
    keyed = {command[0] for command in needed_commands(place)} - _OPTIONAL - _HINTS - {"CONFIG", "WAIT"}
    rules = [f"'~{place.prefix}*'"] if keyed <= lacking else []
    rules += [f"'&{place.prefix}*'"] if lacking & _HINTS else []
    return " ".join([*rules, *(f"+{name.lower()}" for name in sorted(lacking))])


def _network(place: RedisPlace) -> Finding:
    hosts = [host for host, _ in place.hosts]
    found = f"{'password' if place.password else 'no password'}, {'TLS' if place.tls else 'no TLS'}"
    if all(map(_is_loopback, hosts)):
        return Finding("network", f"{found}, on loopback")
    if not place.password:
        return Finding(
            "network",
            found,
            "problem",
            f"whoever reaches it can change every prompt. redis.conf: `user promptmux on >PASSWORD ~{place.prefix}*"
            f" resetchannels &{place.prefix}* +@all -@dangerous +client|setname +config|get +info`;"
            " then --store redis://promptmux:PASSWORD@…",
        )
    if place.tls is None:
        return Finding(
            "network",
            found,
            "warning",
            "password and prompts cross the network in the clear. redis.conf: tls-port, tls-cert-file, tls-key-file;"
            " then --store rediss://…",
        )
    return Finding("network", found)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _kind(facts: RedisFacts) -> Finding:
    if _is_cluster(facts):
        return Finding(
            "kind",
            "a cluster",
            "problem",
            "give the store a Redis of its own: redis.conf: cluster-enabled no",
        )
    role = facts.info.get("role")
    if role is None:
        return unknown("kind", facts, "+info")
    if role != "master":
        host, port = facts.info.get("master_host"), facts.info.get("master_port")
        return Finding(
            "kind",
            "a replica, which takes no writes",
            "problem",
            f"name its primary in --store: {host}:{port}",
        )
    return Finding("kind", "a primary, no cluster")


def _is_cluster(facts: RedisFacts) -> bool:
    return str(facts.info.get("cluster_enabled")) == "1"


def _clock(ahead: float | None) -> Finding:
    if ahead is None:
        return Finding("clock", UNKNOWN, "warning", "allow this user TIME")
    off = abs(ahead)
    found = f"{off:.3f} s {'before' if ahead > 0 else 'behind'} ours"
    if off < _CLOCK_OFF[0]:
        return Finding("clock", f"within {max(off, 0.001):.3f} s of ours")
    verdict: Verdict = "warning" if off < _CLOCK_OFF[1] else "problem"
    advice = "set both machines' clocks by NTP: timedatectl set-ntp true. Histories and `collect` go by them"
    return Finding("clock", found, verdict, advice)


def _store(place: RedisPlace, facts: RedisFacts) -> Finding:
    stand = facts.stand
    if stand is None:
        hidden = "HMGET" in (facts.refused or ()) or _is_cluster(facts)
        return Finding("store", f"{UNKNOWN if hidden else 'none yet'} under {place.prefix}")
    found = f"{stand.tasks} tasks, revision {stand.revision} of epoch {stand.epoch}"
    if stand.schema != _SCHEMA:
        advice = "another promptmux made it: upgrade, or give prefix=… in --store"
        return Finding("store", f"schema {stand.schema}", "problem", advice)
    return Finding("store", found)


def _sentinels(place: RedisPlace, sentinels: tuple[SentinelFacts, ...]) -> Iterator[Finding]:
    if not sentinels:
        return
    silent = [f"{one.host}:{one.port}" for one in sentinels if not one.answers]
    strangers = [f"{one.host}:{one.port}" for one in sentinels if one.answers and one.quorum is None]
    watching = [one for one in sentinels if one.quorum is not None]
    found = f"{len(sentinels) - len(silent)} of {len(sentinels)} answer"
    if watching:
        found += f", quorum {watching[0].quorum} of {max(one.known for one in watching)}"
    if not any(one.agreed for one in sentinels):
        advice = (
            f"too few are up to choose a primary: start {', '.join(silent)}"
            if silent
            else (f"see why with redis-cli -p {place.hosts[0][1]} SENTINEL CKQUORUM {place.service}")
        )
        yield Finding("Sentinels", found, "problem", advice)
    elif silent or strangers:
        advice = "; ".join(
            [f"start {', '.join(silent)}"] * bool(silent)
            + [f"{', '.join(strangers)} does not know {place.service}: sentinel monitor {place.service} …"]
            * bool(strangers)
        )
        yield Finding("Sentinels", found, "warning", advice)
    elif max(one.known for one in watching) < 3:
        yield Finding(
            "Sentinels",
            found,
            "warning",
            "run three, on three machines: with fewer the loss of one ends failover",
        )
    else:
        yield Finding("Sentinels", found)
