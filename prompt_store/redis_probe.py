"""What a Redis says of itself and of this user's rights, asked without changing anything in it.

Owns: the questions. Must not know: which answers are good.

Which commands the user may call is asked by queueing them in a transaction that is then discarded: Redis checks the
rights when a command is queued, and a discarded queue does nothing.
"""

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, TypeVar, cast

from redis import exceptions
from redis.asyncio import Redis

from prompt_store.redis_connection import RedisConnection, as_unavailable
from prompt_store.redis_url import RedisPlace

PINGS: Final = 10
SETTINGS: Final = (
    "maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "no-appendfsync-on-rewrite", "aof-load-truncated",
    "save", "stop-writes-on-bgsave-error", "min-replicas-to-write", "maxclients", "proto-max-bulk-len",
    "client-query-buffer-limit", "timeout",
)  # fmt: skip

Command = tuple[str, ...]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stand:
    """The store in this Redis as its own hash has it."""

    epoch: str
    revision: int
    schema: int
    tasks: int


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What was answered; what this user may not ask is absent, or None."""

    ping_seconds: float
    info: Mapping[str, Any]
    config: Mapping[str, str]
    clock_ahead: float | None  # seconds that Redis's clock is before ours
    refused: frozenset[str] | None  # commands that the store calls and this user may not
    user: str
    stand: Stand | None  # None: no store here yet, or this user may not look
    others: int = 0  # clients that are connected besides this one
    default_user: str | None = None  # what the default user may do; asking this takes an administrator


@dataclass(frozen=True, slots=True)
class SentinelFacts:
    """What one Sentinel says of the service; `quorum` is None where it does not answer, or does not know it."""

    host: str
    port: int
    answers: bool
    quorum: int | None = None
    known: int = 0  # Sentinels that watch the service, itself included
    agreed: bool = False  # whether enough of them are up for a failover


async def ask_redis(place: RedisPlace) -> RedisFacts:
    """Ask the primary of `place`; StoreUnavailable."""
    connection = RedisConnection(place)
    try:
        with as_unavailable(tls=place.tls is not None):
            redis, seconds = connection.redis, place.timeout
            ping = await _ping_seconds(redis, seconds)
            info = await _within(seconds, _allowed(redis.info())) or {}
            return RedisFacts(
                ping_seconds=ping,
                info=info,
                config=await _within(seconds, _config(redis)),
                clock_ahead=await _within(seconds, _clock_ahead(redis)),
                refused=await _within(seconds, _refused(redis, needed_commands(place))),
                user=place.user or "default",
                stand=await _within(seconds, _stand(redis, place.prefix)),
                others=max(0, int(info.get("connected_clients", 1)) - 1),
                default_user=await _within(seconds, _default_user(redis)),
            )
    finally:
        with as_unavailable():
            await connection.aclose()


async def ask_sentinels(place: RedisPlace) -> tuple[SentinelFacts, ...]:
    """Ask every Sentinel that the URL names, all at once. Nothing where it names none."""
    if place.service is None:
        return ()
    connection = RedisConnection(place)
    try:
        asked = zip(place.hosts, connection.sentinels, strict=True)
        return tuple(await asyncio.gather(*(_ask_sentinel(*host, one, place.service) for host, one in asked)))
    finally:
        with as_unavailable():
            await connection.aclose()


def needed_commands(place: RedisPlace) -> tuple[Command, ...]:
    """Every command that the store calls, shaped so that Redis sees the keys and channels it would touch."""
    key, channel = f"{place.prefix}task:doctor", f"{place.prefix}changes"
    alone: list[Command] = [
        ("EVAL", "return 1", "1", key),
        ("EVALSHA", "0" * 40, "1", key),
        ("SUBSCRIBE", channel),
        ("PUBLISH", channel, "0"),
        ("CONFIG", "GET", "*append*"),
        ("INFO",),
    ]
    if place.replicas:
        alone.append(("WAIT", "1", "1"))
    # Of each command in the scripts several lengths, for one of the wrong length is refused before rights are asked.
    inside = [
        (name, *[key] * (1 + more))
        for name in sorted(_script_commands() - {"PUBLISH"})
        for more in range(_LONGEST)
    ]
    return (*alone, *inside)


_LONGEST: Final = 4


def _script_commands() -> set[str]:
    sources = (one.read_text("utf-8") for one in (files("prompt_store") / "lua").iterdir())
    return {name for source in sources for name in re.findall(r"redis\.p?call\('([A-Z]+)'", source)}


async def _ping_seconds(redis: Redis, seconds: float) -> float:
    """The median; the connection is made before."""
    taken = []
    for _ in range(PINGS + 1):
        started = time.perf_counter()
        await _within(seconds, _allowed(_call(redis, "PING")))  # a refusal takes as long
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


async def _config(redis: Redis) -> dict[str, str]:
    pipeline = redis.pipeline(transaction=False)
    for name in SETTINGS:  # one by one: Redis 6.2 takes one name at a time, and `*` would fetch passwords too
        pipeline.config_get(name)
    found: dict[str, str] = {}
    for answer in await pipeline.execute(raise_on_error=False):
        if isinstance(answer, Mapping):
            found.update(cast("Mapping[str, str]", answer))
        elif not isinstance(answer, exceptions.ResponseError):
            raise answer
    return found


async def _clock_ahead(redis: Redis) -> float | None:
    before = time.time()
    answer = await _allowed(redis.time())
    if answer is None:
        return None
    seconds, microseconds = answer
    return float(seconds + microseconds / 1e6 - (before + time.time()) / 2)


async def _default_user(redis: Redis) -> str | None:
    answer = await _allowed(_call(redis, "ACL", "GETUSER", "default"))
    if answer is None:
        return None
    told = answer if isinstance(answer, Mapping) else dict(zip(answer[::2], answer[1::2], strict=True))
    return bytes(told[b"commands"]).decode(errors="replace")


async def _stand(redis: Redis, prefix: str) -> Stand | None:
    found = await _allowed(_call(redis, "HMGET", f"{prefix}store", "epoch", "revision", "schema"))
    if not found or found[0] is None:
        return None
    tasks = await _allowed(_call(redis, "ZCARD", f"{prefix}tasks"))
    return Stand(found[0].decode(errors="replace"), int(found[1] or 0), int(found[2] or 0), int(tasks or 0))


async def _refused(redis: Redis, commands: Sequence[Command]) -> frozenset[str] | None:
    """Which commands this user may not call; None where it may not ask either."""
    pool: Any = redis.connection_pool  # its methods are not typed in every redis-py
    connection = await pool.get_connection()
    try:
        await connection.send_command("MULTI")
        if not await _accepted(connection):
            return None  # so nothing more is sent: outside of a transaction it would be carried out
        for command in (*commands, ("DISCARD",)):
            await connection.send_command(*command)
        accepted = [await _accepted(connection) for _ in commands]
        names = ("CONFIG GET" if command[0] == "CONFIG" else command[0] for command in commands)
        return frozenset(name for name, fine in zip(names, accepted, strict=True) if not fine)
    finally:
        await connection.disconnect()  # a queue that was not discarded ends with its connection
        await pool.release(connection)


async def _accepted(connection: Any) -> bool:
    """Whether the next answer is none that refuses this user the command."""
    try:
        await connection.read_response()
    except exceptions.NoPermissionError:
        return False
    except exceptions.ResponseError as error:
        # A renamed command is refused, too. Anything else is said after the rights were checked.
        return "unknown command" not in str(error).lower()
    return True


def _call(redis: Redis, *command: str) -> Any:
    return cast("Any", redis).execute_command(*command)


async def _within(seconds: float, answer: Awaitable[_T]) -> _T:
    async with asyncio.timeout(seconds):
        return await answer


async def _allowed(answer: Any) -> Any:
    """What Redis answers; None where it refuses: this user may not ask, or (in a cluster) another is to be asked."""
    try:
        return await answer
    except exceptions.ResponseError:
        return None


async def _ask_sentinel(host: str, port: int, sentinel: Redis, service: str) -> SentinelFacts:
    try:
        said = await _call(sentinel, "SENTINEL MASTER", service)
        quorum, known = int(said["quorum"]), int(said["num-other-sentinels"]) + 1
    except exceptions.ResponseError:
        return SentinelFacts(host, port, answers=True)
    except (exceptions.RedisError, OSError, asyncio.IncompleteReadError):
        return SentinelFacts(host, port, answers=False)
    try:
        await _call(sentinel, "SENTINEL CKQUORUM", service)
    except (exceptions.RedisError, OSError, asyncio.IncompleteReadError):
        return SentinelFacts(host, port, True, quorum, known)
    return SentinelFacts(host, port, True, quorum, known, agreed=True)
