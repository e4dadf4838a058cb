"""What an acknowledged write in a Redis outlives, by its settings and by what became of its last writes.

Owns: the judgement of the append-only file, of snapshots and of replicas. Must not know: how Redis is asked.
"""

from collections.abc import Iterator

from prompt_store.finding import Finding, Verdict
from prompt_store.redis_probe import RedisFacts
from prompt_store.redis_settings import RedisSettings, config_set, unknown
from prompt_store.redis_url import RedisPlace


def log_file(settings: RedisSettings) -> Iterator[Finding]:
    """The append-only file: what an acknowledgement means."""
    kept = settings.text("appendonly")
    if kept is None:
        yield settings.unknown("appendonly")
    elif kept != "yes":
        yield Finding(
            "appendonly",
            kept,
            "problem",
            f"prompts are lost when Redis ends: {config_set('appendonly', 'yes')}",
        )
        return  # the rest says how that file is written
    else:
        yield Finding("appendonly", kept)
    yield _fsync(settings)
    yield _setting(
        settings,
        "no-appendfsync-on-rewrite",
        "no",
        "while Redis rewrites its file, an acknowledged write is not on the disk",
    )
    yield _setting(
        settings,
        "aof-load-truncated",
        "yes",
        "after a power cut that tore the file's end, Redis does not start before redis-check-aof --fix",
    )


def reader_of_the_log(facts: RedisFacts, settings: RedisSettings) -> Iterator[Finding]:
    """The default user, as whom Redis reads its log; nothing where only an administrator may ask."""
    may = facts.default_user
    if may is None or settings.text("appendonly") != "yes":
        return
    if may.startswith("+@all"):
        yield Finding("default user", f"may {may}")
        return
    yield Finding(
        "default user",
        f"may {may}",
        "problem",
        "Redis reads its log as this user, and passes over every transaction at its next start: the store would be"
        " empty. Then ACL SAVE, or the same in redis.conf: redis-cli ACL SETUSER default off resetpass ~* &* +@all",
    )


def _fsync(settings: RedisSettings) -> Finding:
    policy = settings.text("appendfsync")
    always = config_set("appendfsync", "always")
    match policy:
        case None:
            return settings.unknown("appendfsync")
        case "always":
            return Finding("appendfsync", policy)
        case "everysec":
            advice = (
                f"when its machine dies, Redis loses the last second or two of acknowledged writes: {always}"
            )
            return Finding("appendfsync", policy, "warning", advice)
        case _:
            advice = f"when its machine dies, Redis loses what the kernel has not written yet: {always}"
            return Finding("appendfsync", policy, "problem", advice)


def _setting(settings: RedisSettings, name: str, wanted: str, otherwise: str) -> Finding:
    value = settings.text(name)
    if value is None:
        return settings.unknown(name)
    if value == wanted:
        return Finding(name, value)
    return Finding(name, value, "warning", f"{otherwise}: {config_set(name, wanted)}")


def disk(facts: RedisFacts, settings: RedisSettings) -> Iterator[Finding]:
    """What became of the last writes to the disk, and whether a failing snapshot stops writes."""
    for name, field, verdict, advice in _LAST:
        status = facts.info.get(field)
        if status is None:
            yield unknown(name, facts, "+info")
        elif status == "ok":
            yield Finding(name, "ok")
        else:
            yield Finding(name, str(status), verdict, advice)
    if settings.text("save"):  # without snapshots none can fail
        yield _setting(
            settings, "stop-writes-on-bgsave-error", "yes", "a full disk shows only when it is too late"
        )


_SEE: str = "free space on Redis's disk, see its log"
_LAST: tuple[tuple[str, str, Verdict, str], ...] = (
    ("last write of the file", "aof_last_write_status", "problem", f"writes are refused: {_SEE}"),
    ("last rewrite of it", "aof_last_bgrewrite_status", "warning", f"{_SEE}, then redis-cli BGREWRITEAOF"),
    (
        "last snapshot",
        "rdb_last_bgsave_status",
        "problem",
        f"writes may be refused: {_SEE}, then redis-cli BGSAVE",
    ),
)


def replicas(place: RedisPlace, facts: RedisFacts, settings: RedisSettings) -> Iterator[Finding]:
    """How many machines have a copy, and how many must."""
    if facts.info.get("role", "master") != "master":
        return
    connected = facts.info.get("connected_slaves")
    if connected is None:
        yield unknown("replicas", facts, "+info")
        return
    connected = int(connected)
    found = f"{connected} connected, writes wait for {place.replicas}"
    if connected < place.replicas:
        yield Finding(
            "replicas",
            found,
            "problem",
            f"each write waits {place.replicas_timeout:g} s in vain: start the replicas, or lower replicas= in the URL",
        )
    else:
        yield Finding("replicas", found)
    least = settings.number("min-replicas-to-write")
    if least is None:
        yield settings.unknown("min-replicas-to-write")
    elif least > connected:
        yield Finding(
            "min-replicas-to-write",
            f"{least}, with {connected} connected",
            "problem",
            f"writes are refused: start the replicas, or {config_set('min-replicas-to-write', str(connected))}",
        )
    elif place.service is not None and least == 0:
        yield Finding(
            "min-replicas-to-write",
            "0, with Sentinels",
            "warning",
            "a primary that was cut off goes on taking writes, which a failover loses:"
            f" {config_set('min-replicas-to-write', '1')}",
        )
    else:
        yield Finding("min-replicas-to-write", str(least))
