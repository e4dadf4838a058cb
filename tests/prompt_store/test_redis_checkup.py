"""A real Redis with each thing wrong that can be made wrong is found out; a good one is left in peace."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.faults.redis_process import RedisProcess, start_sentinel
from prompt_store import open_store
from prompt_store.checkup import examine
from prompt_store.finding import Finding
from prompt_store.redis_checkup import judge
from prompt_store.redis_probe import RedisFacts, ask_redis
from prompt_store.redis_url import parse_redis_url

MOST = 256 * 2**20
MANUAL = Path(__file__).parents[2] / "docs" / "redis.md"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis"), maxmemory=MOST) as running:
        yield running


@pytest.fixture
def misset(good: RedisProcess) -> Iterator[RedisProcess]:
    """The same Redis, for a test that sets it wrong: set right again afterwards."""
    yield good
    for name, value in {
        "maxmemory": MOST, "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no", "aof-load-truncated": "yes", "min-replicas-to-write": 0, "maxclients": 10000,
        "proto-max-bulk-len": "512mb", "client-query-buffer-limit": "1gb", "timeout": 0, "save": "",
        "stop-writes-on-bgsave-error": "yes",
    }.items():  # fmt: skip
        good.run("CONFIG", "SET", name, value)
    good.run("FLUSHALL")
    good.run("ACL", "DELUSER", "ann")


async def found(url: str, *, deep: bool = False) -> dict[str, Finding]:
    findings = await examine(url, deep=deep)
    assert len({one.name for one in findings}) == len(findings)
    assert all(one.advice for one in findings if one.verdict != "ok"), (
        "whoever reads it is to know what to do"
    )
    assert all(one.verdict != "ok" for one in findings if one.advice)
    return {one.name: one for one in findings}


async def test_a_good_redis_has_no_problems_and_is_left_as_it_was(good: RedisProcess) -> None:
    findings = await found(good.url, deep=True)
    assert {one.name: one.verdict for one in findings.values() if one.name != "Lua flaw"} == {
        name: "ok" for name in findings if name != "Lua flaw"
    }
    assert findings["store"].found == "none yet under promptmux:"
    assert "every version" not in findings, "there is nothing to read, and reading would make a store"
    assert good.run("DBSIZE") == 0
    assert good.run("INFO", "persistence")["rdb_changes_since_last_save"] == 0


@pytest.mark.parametrize(
    ("name", "value", "verdict", "advised"),
    [
        ("appendonly", "no", "problem", "redis-cli CONFIG SET appendonly yes"),
        ("appendfsync", "everysec", "warning", "redis-cli CONFIG SET appendfsync always"),
        ("appendfsync", "no", "problem", "redis-cli CONFIG SET appendfsync always"),
        ("no-appendfsync-on-rewrite", "yes", "warning", "redis-cli CONFIG SET no-appendfsync-on-rewrite no"),
        ("aof-load-truncated", "no", "warning", "redis-cli CONFIG SET aof-load-truncated yes"),
        ("maxmemory", "0", "warning", "redis-cli CONFIG SET maxmemory "),
        ("maxmemory", "600kb", "problem", "redis-cli CONFIG SET maxmemory 1mb"),
        ("maxmemory-policy", "allkeys-lru", "problem", "redis-cli CONFIG SET maxmemory-policy noeviction"),
        ("maxmemory-policy", "volatile-lru", "warning", "redis-cli CONFIG SET maxmemory-policy noeviction"),
        ("min-replicas-to-write", "1", "problem", "redis-cli CONFIG SET min-replicas-to-write 0"),
        ("maxclients", "100", "warning", "redis-cli CONFIG SET maxclients 10000"),
        ("maxclients", "20", "problem", "redis-cli CONFIG SET maxclients 10000"),
        ("proto-max-bulk-len", "32mb", "problem", "redis-cli CONFIG SET proto-max-bulk-len 512mb"),
        (
            "client-query-buffer-limit",
            "32mb",
            "problem",
            "redis-cli CONFIG SET client-query-buffer-limit 1gb",
        ),
        ("timeout", "30", "warning", "redis-cli CONFIG SET timeout 0"),
    ],
)
async def test_each_setting_that_is_wrong_is_found(
    misset: RedisProcess, name: str, value: str, verdict: str, advised: str
) -> None:
    misset.run("CONFIG", "SET", name, value)
    findings = await found(misset.url)
    assert findings[name].verdict == verdict, findings[name]
    assert advised in findings[name].advice
    others = {one.name for one in findings.values() if one.verdict != "ok"} - {"Lua flaw"}
    assert others == {name}
    # What is advised is a command that this Redis takes, and that helps.
    words = findings[name].advice.partition("redis-cli ")[2].split()
    misset.run(*words)
    after = (await found(misset.url))[name]
    assert after.verdict == "ok" or (name, value) == ("maxmemory", "600kb")


async def test_a_default_user_without_rights_is_found_by_whoever_may_ask(misset: RedisProcess) -> None:
    # With `off` alone, as an ACL file takes it, Redis passes over its whole log when it starts.
    misset.run("ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all")
    assert (await found(misset.url))["default user"].verdict == "ok"
    url = misset.url.replace("://", "://ann:secret@")
    try:
        misset.run("ACL", "SETUSER", "default", "-@all", "+acl", "+ping")
        finding = (await found(url))["default user"]
        misset.run("ACL", "SETUSER", "ann", "-acl")
        assert "default user" not in await found(url)  # who may not ask is told nothing
    finally:
        misset.run("ACL", "SETUSER", "default", "+@all")
    assert finding.verdict == "problem"
    assert "ACL SETUSER default off resetpass ~* &* +@all" in finding.advice


async def test_snapshots_that_fail_unseen(misset: RedisProcess) -> None:
    misset.run("CONFIG", "SET", "save", "3600 1")
    assert (await found(misset.url))["stop-writes-on-bgsave-error"].verdict == "ok"
    misset.run("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
    assert (await found(misset.url))["stop-writes-on-bgsave-error"].verdict == "warning"


async def test_a_user_who_may_not_ask_for_settings(misset: RedisProcess) -> None:
    misset.run(
        "ACL",
        "SETUSER",
        "ann",
        "on",
        ">pw",
        "~promptmux:*",
        "resetchannels",
        "&promptmux:*",
        "+@all",
        "-config",
    )
    findings = await found(misset.url.replace("//", "//ann:pw@"))
    assert findings["rights"].verdict == "ok"
    for name in ("appendfsync", "no-appendfsync-on-rewrite", "timeout", "proto-max-bulk-len"):
        assert (findings[name].found, findings[name].verdict) == ("unknown", "warning")
        assert "redis-cli ACL SETUSER ann +config|get" in findings[name].advice
    assert findings["appendonly"].verdict == findings["maxmemory-policy"].verdict == "ok", "INFO says so, too"
    misset.run("ACL", "SETUSER", "ann", "+config|get")
    assert (await found(misset.url.replace("//", "//ann:pw@")))["appendfsync"].found == "always"


@pytest.mark.parametrize(
    ("rights", "lacking"),
    [
        (["~promptmux:*", "&promptmux:*", "+@all", "-eval", "-evalsha"], "EVAL, EVALSHA"),
        (["~promptmux:*", "&others:*", "+@all"], "PUBLISH, SUBSCRIBE"),
        (["~promptmux:*", "&promptmux:*", "+@all", "-zadd"], "ZADD"),
        (["~promptmux:*", "&promptmux:*", "+@all", "-hmget", "-zcard", "-time"], "HMGET"),
        (["~others:*", "&promptmux:*", "+@all"], "HSET"),
    ],
)
async def test_rights_that_the_store_lacks(misset: RedisProcess, rights: list[str], lacking: str) -> None:
    misset.run("ACL", "SETUSER", "ann", "on", ">pw", "resetchannels", *rights)
    url = misset.url.replace("//", "//ann:pw@")
    finding = (await found(url))["rights"]
    assert finding.verdict == ("warning" if lacking == "PUBLISH, SUBSCRIBE" else "problem")
    assert lacking in finding.found
    assert misset.run("DBSIZE") == 0
    command = finding.advice.partition("redis-cli ")[2].replace("'", "").split()
    misset.run(*command)
    assert (await found(url))["rights"].verdict == "ok"


async def test_rights_that_cannot_be_asked(misset: RedisProcess) -> None:
    misset.run(
        "ACL", "SETUSER", "ann", "on", ">pw", "allkeys", "allchannels", "+@all", "-multi", "-info", "-ping"
    )
    before = misset.run("DBSIZE")
    findings = await found(misset.url.replace("//", "//ann:pw@"))
    assert findings["rights"].found == findings["version"].found == findings["kind"].found == "unknown"
    assert misset.run("DBSIZE") == before, "what cannot be queued is not sent"


async def test_the_rights_that_are_advised_off_loopback_are_enough(misset: RedisProcess) -> None:
    place = parse_redis_url("redis://10.0.0.1")
    facts = await ask_redis(parse_redis_url(misset.url))
    advice = {one.name: one for one in judge(place, facts)}["network"]
    assert advice.verdict == "problem"
    rule = advice.advice.partition("`user promptmux ")[2].partition("`")[0].replace("PASSWORD", "pw")
    misset.run("ACL", "SETUSER", "ann", *rule.split())
    url = misset.url.replace("//", "//ann:pw@")
    findings = await found(url)
    assert {one.name for one in findings.values() if one.verdict != "ok"} <= {"Lua flaw"}
    store = open_store(url)
    assert (await store.revision()).number == 0
    await store.aclose()


async def test_what_the_manual_says_is_a_good_redis(tmp_path: Path) -> None:
    blocks = MANUAL.read_text("utf-8").split("```\n")
    (settings,) = (block for block in blocks if block.startswith("appendonly yes\n"))
    (user,) = (block for block in blocks if block.startswith("user promptmux "))
    own = dict(line.split(" ", 1) for line in (settings + user.replace("PASSWORD", "pw")).splitlines())
    with RedisProcess(tmp_path, **own) as manual:
        findings = await found(manual.url.replace("//", "//promptmux:pw@"))
    assert {one.name for one in findings.values() if one.verdict != "ok"} <= {"Lua flaw"}


async def test_every_version_is_read(misset: RedisProcess, build: object) -> None:
    store = open_store(misset.url)
    first = await store.publish(build.prompt())  # type: ignore[attr-defined]
    await store.publish(build.prompt("other", 2))  # type: ignore[attr-defined]
    await store.aclose()
    findings = await found(misset.url, deep=True)
    assert findings["store"].found.startswith("2 tasks, revision 2 of epoch ")
    assert findings["every version"].found.startswith("2 read, ")
    misset.run("SETRANGE", f"promptmux:blob:{first.version}", 200, "x")
    damaged = (await found(misset.url, deep=True))["every version"]
    assert damaged.verdict == "problem"
    assert f"sentiment {first.version[:12]}" in damaged.advice


async def test_a_store_of_another_promptmux(misset: RedisProcess) -> None:
    misset.run("HSET", "promptmux:store", "epoch", "e", "revision", 4, "schema", 2)
    findings = await found(misset.url, deep=True)
    assert findings["store"].verdict == findings["every version"].verdict == "problem"


async def test_keys_that_were_evicted(misset: RedisProcess) -> None:
    misset.run("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    for number in range(20):
        misset.run("SET", f"key{number}", b"x" * 100_000)
    misset.run("CONFIG", "SET", "maxmemory", "2mb")
    while not misset.run("INFO", "stats")["evicted_keys"]:
        misset.run("SET", "one more", b"x" * 100_000)
    assert "--deep" in (await found(misset.url))["evicted keys"].advice
    misset.run("CONFIG", "RESETSTAT")


async def test_nobody_there_and_nobody_answering(good: RedisProcess, tmp_path: Path) -> None:
    (finding,) = await examine("redis://127.0.0.1:1")
    assert (finding.name, finding.verdict) == ("Redis", "problem")
    assert "cannot be reached" in finding.advice
    (finding,) = await examine(good.url.replace("//", "//nobody:wrong@"))
    assert "password" in finding.advice
    with RedisProcess(tmp_path, requirepass="pw") as closed:
        (finding,) = await examine(closed.url.replace(":pw@", ""))
        assert "password" in finding.advice
    good.pause()
    try:
        (finding,) = await examine(f"{good.url}?timeout=0.3")
    finally:
        good.resume()
    assert "in time" in finding.advice


async def test_a_cluster(tmp_path: Path) -> None:
    # Its second port is the first plus 10,000, which is to lie below those of outgoing connections, too.
    port = next(port for port in range(20_000, 22_000) if is_free(port) and is_free(port + 10_000))
    with RedisProcess(tmp_path, port, cluster_enabled=True, maxmemory=MOST) as cluster:
        assert (await found(cluster.url))["kind"].found == "a cluster"


def is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


async def test_a_replica_and_its_primary(good: RedisProcess, tmp_path: Path) -> None:
    url = f"{good.url}?replicas=1&replicas_timeout=0.5"
    assert (await found(url))["replicas"].verdict == "problem"
    with RedisProcess(tmp_path, maxmemory=MOST, replicaof=f"127.0.0.1 {good.port}") as replica:
        end = time.monotonic() + 120
        while replica.run("INFO", "replication")["master_link_status"] != "up":
            assert time.monotonic() < end
            time.sleep(0.05)  # noqa: ASYNC251 — nothing else runs on this loop
        assert (await found(f"{good.url}?replicas=1&replicas_timeout=30"))["replicas"].verdict == "ok"
        kind = (await found(replica.url))["kind"]
        assert kind.verdict == "problem"
        assert f"127.0.0.1:{good.port}" in kind.advice


async def test_sentinels(good: RedisProcess, tmp_path: Path) -> None:
    url = "redis+sentinel://127.0.0.1:{}{}/mymaster/0"
    with start_sentinel(tmp_path / "alone", good.port, quorum=1) as one:
        findings = await found(url.format(one.port, ""))
        assert findings["Sentinels"].found == "1 of 1 answer, quorum 1 of 1"
        assert findings["Sentinels"].verdict == "warning", "one is no quorum"
        assert findings["min-replicas-to-write"].verdict == "warning"
        findings = await found(url.format(one.port, ",127.0.0.1:1"))
        assert findings["Sentinels"].advice == "start 127.0.0.1:1"
        strange = await found(url.format(one.port, "").replace("mymaster", "other"))
        assert strange["Sentinels"].verdict == strange["Redis"].verdict == "problem"
    with start_sentinel(tmp_path / "too few", good.port, quorum=2) as one:
        findings = await found(url.format(one.port, ""))
        assert findings["Sentinels"].verdict == "problem"


@pytest.fixture
async def facts(good: RedisProcess) -> RedisFacts:
    return await ask_redis(parse_redis_url(good.url))


def judged(facts: RedisFacts, url: str = "redis://localhost") -> dict[str, Finding]:
    return {one.name: one for one in judge(parse_redis_url(url), facts)}


async def test_what_cannot_be_brought_about_here_is_judged_all_the_same(facts: RedisFacts) -> None:
    assert judged(replace(facts, clock_ahead=-1.5))["clock"].verdict == "warning"
    assert judged(replace(facts, clock_ahead=90.0))["clock"].verdict == "problem"
    assert judged(replace(facts, ping_seconds=0.2))["ping"].verdict == "warning"
    for name, field, verdict in (
        ("last write of the file", "aof_last_write_status", "problem"),
        ("last rewrite of it", "aof_last_bgrewrite_status", "warning"),
        ("last snapshot", "rdb_last_bgsave_status", "problem"),
    ):
        assert judged(replace(facts, info={**facts.info, field: "err"}))[name].verdict == verdict
    nearly = {**facts.info, "used_memory": MOST * 0.9}
    assert judged(replace(facts, info=nearly))["maxmemory"].verdict == "warning"


@pytest.mark.parametrize(
    ("version", "old", "flawed"),
    [
        ("6.0.16", True, True), ("6.2.19", False, True), ("6.2.20", False, False), ("7.0.15", False, True),
        ("7.2.11", False, False), ("7.4.5", False, True), ("8.0.3", False, True), ("8.0.4", False, False),
        ("8.2.1", False, True), ("8.2.2", False, False), ("8.4.0", False, False), ("9.0.0", False, False),
    ],
)  # fmt: skip
async def test_versions(facts: RedisFacts, version: str, old: bool, flawed: bool) -> None:
    findings = judged(replace(facts, info={**facts.info, "redis_version": version}))
    assert (findings["version"].verdict == "problem") is old
    assert (findings["Lua flaw"].verdict == "warning") is flawed


async def test_valkey_has_versions_of_its_own(facts: RedisFacts) -> None:
    valkey = {**facts.info, "redis_version": "7.2.4", "valkey_version": "8.1.4"}
    assert judged(replace(facts, info=valkey))["Lua flaw"].verdict == "ok"
    flawed = judged(replace(facts, info={**valkey, "valkey_version": "8.1.3"}))
    assert flawed["Lua flaw"].verdict == "warning"


async def test_passwords_and_tls_off_loopback(facts: RedisFacts) -> None:
    assert judged(facts, "redis://cache.internal")["network"].verdict == "problem"
    assert judged(facts, "redis://:pw@cache.internal")["network"].verdict == "warning"
    assert judged(facts, "rediss://:pw@cache.internal")["network"].verdict == "ok"
    assert judged(facts, "redis://[::1]")["network"].verdict == "ok"
