"""Redis as the store speaks to it: connections, scripts, and what its errors mean.

Owns: the client's settings, one round trip with one script, and the translation of redis-py's errors. Must not know:
what the scripts do.

A read without an answer is asked again on another connection. A write is sent once: one whose answer was lost may have
been made, and only the caller knows whether to ask for it once more.
"""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from prompt_store.errors import StoreUnavailable
from prompt_store.redis_url import RedisPlace
from prompt_store.store import Durability

T = TypeVar("T")

_CONNECT_SECONDS: Final = 2.0
_AGAIN_SECONDS: Final = 1.0
_BYTES_PER_SECOND: Final = 2**20  # the slowest network over which a large version is published
_CALLS_AT_ONCE: Final = 32  # more of them wait their turn; each may need two connections
MOST_CONNECTIONS: Final = 2 * _CALLS_AT_ONCE + 8  # for polls, which do not wait, and the subscription

# What Redis writes in capitals at the head of an error, also of one inside a script.
_BY_WORD: Final = {
    "OOM": "Redis is out of memory: raise its maxmemory, or delete tasks and collect",
    "READONLY": "this Redis is a read-only replica: name the primary, or the Sentinels",
    "MISCONF": "Redis cannot write to its disk: free space on it, and see Redis's log",
    "NOREPLICAS": "Redis has too few replicas to take writes (min-replicas-to-write): start them again",
    "LOADING": "Redis is still loading its data: try again",
    "BUSY": "Redis is busy with a script of somebody else's: see its slow log",
    "MASTERDOWN": "this Redis is a replica without its primary: see Redis's log",
    "NOAUTH": "Redis wants a password: put it into the store's URL",
    "WRONGPASS": "Redis refuses this user or password: check the store's URL",
    "NOPERM": "Redis does not allow this user what the store needs: see its access list",
    "CLUSTERDOWN": "the Redis cluster is down: see its log",
    "MOVED": "this is a Redis cluster, where the store cannot live: give it a Redis of its own",
    "CROSSSLOT": "this is a Redis cluster, where the store cannot live: give it a Redis of its own",
}
_REFUSED: Final = "Redis refuses this user or password: check the store's URL"
_SLOW: Final = "Redis does not answer in time: look at its load and at the network"
_AWAY: Final = "Redis cannot be reached: check that it runs, and the store's URL"
_MANY: Final = "too many calls to Redis at once: try again"
_CERTIFICATE: Final = (
    "Redis's TLS certificate is refused, or ours by Redis: check ca, cert and key in the store's URL"
)
_NO_FILE: Final = "a file for TLS cannot be read: check ca, cert and key in the store's URL"
_BARRED: Final = "this machine does not let us connect to Redis: check its firewall"
_NO_PRIMARY: Final = "the Sentinels name no primary: check the service's name, and Redis"
_ODD: Final = "Redis answered with an error: see the log"


class RedisConnection:
    """A pool of connections to one place. Opens nothing before it is used."""

    def __init__(self, place: RedisPlace) -> None:
        self._place = place
        self._turns = asyncio.Semaphore(_CALLS_AT_ONCE)
        keywords: dict[str, Any] = {
            "db": place.database,
            "username": place.user,
            "password": place.password,
            "client_name": "promptmux",
            "protocol": 2,
            # With a socket_timeout redis-py sends through asyncio.wait_for, which before Python 3.12 can swallow
            # a cancellation that meets the end of the write. `_in_time` bounds whole calls instead.
            "socket_timeout": None,
            "socket_connect_timeout": min(_CONNECT_SECONDS, place.timeout),
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "max_connections": MOST_CONNECTIONS,
            **(place.tls or {}),
        }
        self._sentinel: Sentinel | None = None
        if place.service is None:
            ((host, port),) = place.hosts
            self._redis = Redis(host=host, port=port, **keywords)
        else:
            quick = {
                "socket_timeout": 1.0,
                "socket_connect_timeout": 1.0,
                "retry": Retry(NoBackoff(), 0),
                **place.sentinel_auth,
            }
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                place.hosts, sentinel_kwargs={**quick, **(place.tls or {})}, **keywords
            )
            self._redis = self._sentinel.master_for(place.service)

    @property
    def redis(self) -> Redis:
        """The client itself, without a bound on the time that a call takes."""
        return self._redis

    @property
    def sentinels(self) -> tuple[Redis, ...]:
        """A client for each Sentinel, in the URL's order; none where the URL names the primary itself."""
        return () if self._sentinel is None else tuple(self._sentinel.sentinels)

    def subscriber(self) -> PubSub:
        """A connection of its own, to hear messages on."""
        return self._redis.pubsub(ignore_subscribe_messages=True)

    async def ask(
        self, script: str, *arguments: str | int | float | bytes, urgent: bool = False
    ) -> list[Any]:
        """What a script that reads answers; StoreUnavailable.

        An `urgent` one does not wait behind others: a poll must not be late for a slow download.
        """
        turn = contextlib.nullcontext() if urgent else self._turns
        async with self._in_time(self._place.timeout), turn:
            return list((await self._first_of(lambda: self._send(script, arguments)))[0])

    async def tell(self, script: str, *arguments: str | int | float | bytes) -> tuple[list[Any], Durability]:
        """What a script that writes answers, and what Redis promises of it; StoreUnavailable.

        The settings are asked for in the same round trip, for an operator may change them at any time.
        """
        place = self._place
        wait = ("WAIT", place.replicas, int(place.replicas_timeout * 1000))
        more = [("CONFIG", "GET", "*append*"), *([wait] if place.replicas else [])]
        # A large version takes its time to send, also to a Redis that is well.
        sending = sum(len(one) for one in arguments if isinstance(one, bytes)) / _BYTES_PER_SECOND
        waiting = place.replicas_timeout if place.replicas else 0.0
        async with self._in_time(place.timeout + sending + waiting), self._turns:
            answer, settings, *confirmed = await self._send(script, arguments, *more)
        replicas = confirmed[0] if confirmed and isinstance(confirmed[0], int) else 0
        return list(answer), Durability(_fsync(settings), replicas)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()
        if self._sentinel is not None:
            for sentinel in self._sentinel.sentinels:
                await sentinel.aclose()

    @asynccontextmanager
    async def _in_time(self, seconds: float) -> AsyncIterator[None]:
        with as_unavailable(tls=self._place.tls is not None):
            try:
                async with asyncio.timeout(seconds):
                    yield
            except (exceptions.ConnectionError, OSError, RuntimeError):
                await self._drop_idle()  # closed as this one was
                raise

    async def _first_of(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The first answer to a read, which is asked again each second on another connection.

        A network that broke without a word looks like a slow one from here, and an answer that was lost never comes:
        after the network healed, only a new connection gives one. The first question waits on, for an answer that is
        only slow; the second gives way to the next.
        """
        loop = asyncio.get_running_loop()
        waiting = {first := asyncio.ensure_future(ask())}
        try:
            while True:
                again = loop.time() + _AGAIN_SECONDS
                while waiting and (left := again - loop.time()) > 0:
                    done, waiting = await asyncio.wait(
                        waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
                    for one in sorted(done, key=lambda one: one.exception() is not None):
                        if one.exception() is None or not waiting:
                            return one.result()
                await self._drop_idle()  # they may be as dead, and each would cost another second
                for one in waiting - {first}:
                    one.cancel()
                waiting = (waiting & {first}) | {asyncio.ensure_future(ask())}
        finally:
            for one in waiting:
                one.cancel()
            if waiting:
                await asyncio.wait(waiting)

    async def _drop_idle(self) -> None:
        """Close the connections that nobody uses."""
        with contextlib.suppress(Exception):
            await self._redis.connection_pool.disconnect(inuse_connections=False)

    async def _send(
        self, script: str, arguments: Sequence[str | int | float | bytes], *commands: tuple[object, ...]
    ) -> list[Any]:
        """One round trip: the script, then commands on the same connection. The commands' errors are among the
        results; the script's is raised.
        """
        source, digest = _script(script)
        for head in (("EVALSHA", digest), ("EVAL", source)):
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.execute_command(*head, 1, f"{self._place.prefix}store", self._place.prefix, *arguments)
            for command in commands:
                pipeline.execute_command(*command)
            results: list[Any] = await pipeline.execute(raise_on_error=False)
            if not isinstance(results[0], exceptions.NoScriptError):
                break
            # A Redis that was restarted, or never saw the script: nothing was done.
        if isinstance(results[0], Exception):
            raise results[0]
        return results


@cache
def _script(name: str) -> tuple[str, str]:
    """A script's source and its SHA-1, by which Redis knows it."""
    folder = files("prompt_store") / "lua"
    source = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("common", name))
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _fsync(settings: object) -> Any:
    """`Durability.fsync` of what `CONFIG GET *append*` answered."""
    if not isinstance(settings, list | dict):
        return "unknown"  # a managed Redis keeps it to itself
    pairs = settings if isinstance(settings, dict) else dict(zip(settings[::2], settings[1::2], strict=True))
    said = {_text(name): _text(value) for name, value in pairs.items()}
    if said.get("appendonly") != "yes":
        return "off" if said.get("appendonly") == "no" else "unknown"
    if said.get("no-appendfsync-on-rewrite") == "yes":
        return "no"  # while the log is rewritten, which Redis begins by itself
    policy = said.get("appendfsync")
    return policy if policy in ("always", "everysec", "no") else "unknown"


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@contextmanager
def as_unavailable(*, tls: bool = False) -> Iterator[None]:
    """Turn redis-py's errors into StoreUnavailable; all others pass. The original stays the cause, for the log.

    `tls`: the URL asks for TLS, so that a file which cannot be read is one of its.
    """
    try:
        yield
    except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
        raise StoreUnavailable(_advice(error, tls=tls)) from error
    except RuntimeError as error:
        # uvloop's word for a write on a connection that was closed a moment ago, where asyncio's is ConnectionError.
        if "handler is closed" not in str(error):
            raise
        raise StoreUnavailable(_AWAY) from error


def _advice(error: BaseException, *, tls: bool) -> str:
    if "user executing the script" in str(error):  # no NOPERM from inside a script
        return _BY_WORD["NOPERM"]
    words = set(str(error).replace("-", " ").replace(":", " ").split())
    for word, advice in _BY_WORD.items():
        if word in words:
            return advice
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (exceptions.BusyLoadingError, _BY_WORD["LOADING"]),
        (exceptions.ReadOnlyError, _BY_WORD["READONLY"]),
        (exceptions.OutOfMemoryError, _BY_WORD["OOM"]),
        (exceptions.NoPermissionError, _BY_WORD["NOPERM"]),
        (exceptions.AuthenticationError, _REFUSED),
        (exceptions.AuthorizationError, _REFUSED),
        (exceptions.MaxConnectionsError, _MANY),
        (exceptions.TimeoutError, _SLOW),
        (TimeoutError, _SLOW),
        (exceptions.ConnectionError, _AWAY),
        (OSError, _AWAY),
        (asyncio.IncompleteReadError, _AWAY),
    )
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return _CERTIFICATE
    if tls and any(isinstance(cause, FileNotFoundError | PermissionError) for cause in causes):
        return _NO_FILE
    if any(isinstance(cause, PermissionError) for cause in causes):
        return _BARRED
    if type(error).__name__ == "MasterNotFoundError":
        return _NO_PRIMARY
    return next((advice for kind, advice in kinds if isinstance(error, kind)), _ODD)
