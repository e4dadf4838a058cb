"""Twelve things that go wrong with a Redis, each with its beginning and its end.

Owns: what each fault does. Must not know: load, measuring, what the server should do about it. After `heal` has
returned the Redis is as it was before, reachable and with its data; only the flush takes these for good.
"""

from __future__ import annotations

import contextlib
import time
from typing import ClassVar

import redis

from loadtest.faults.fault_proxy import Mode
from loadtest.faults.known_load import until
from loadtest.faults.redis_process import RedisProcess, Setting
from loadtest.faults.redis_site import REFUSED, RESET, SILENT, Fault, Site, client

SLOW_SECONDS = 2.0
_UNTIL_REFUSED = 6.0  # a store that hangs is given up after the 5 s of its URL's `timeout`
_SILENT_SECONDS = 0.5
_PASSWORD = "another"
_WRITE = "SET no-such-key 0 XX"  # changes nothing, and is refused where writes are
_FILLER = 40_000  # keys that make loading long; Redis looks at its clients once in 1024 commands of its log
_LOAD_DELAY = 250  # microseconds for each of them, unless the fault is healed earlier
REDIS_SETTINGS: dict[str, Setting] = {"auto_aof_rewrite_percentage": 0}
"""What the Redis of these faults needs: a log that is loaded command by command."""


class DownAtStart(Fault):
    """The server is started again while Redis is down; something was published while neither ran."""

    name = "down at start"
    restarts_server = True

    def begin(self) -> None:
        """Stop the server and then Redis, and start the server."""
        self.site.pause_load()
        self.site.server.stop()
        self.site.publish_meanwhile()
        _end(self.site)
        self.started_in = self.site.server.start()
        self.site.resume_load()

    def heal(self) -> None:
        """Start Redis."""
        _start(self.site)

    def is_there(self) -> bool:
        """Nothing listens, and the server has started all the same."""
        return self.started_in is not None and _is_away(self.site)


class Kill(Fault):
    """The process is killed and started again on its data."""

    name = "kill"

    def begin(self) -> None:
        """Kill it."""
        _end(self.site)

    def heal(self) -> None:
        """Start it."""
        _start(self.site)

    def is_there(self) -> bool:
        """Nothing listens."""
        return _is_away(self.site)


class Stopped(Fault):
    """SIGSTOP: connections are taken, and nothing answers."""

    name = "SIGSTOP"
    least_seconds = _UNTIL_REFUSED

    def begin(self) -> None:
        """Freeze it."""
        self.site.redis.pause()

    def heal(self) -> None:
        """Let it go on."""
        self.site.redis.resume()

    def is_there(self) -> bool:
        """Nothing answers."""
        return self.site.said("PING", patience=_SILENT_SECONDS) == SILENT


class _Network(Fault):
    """The way between server and Redis; a second client has its own."""

    mode: ClassVar[Mode]
    writable = True

    def begin(self) -> None:
        """Break the way."""
        self.site.proxy.delay = SLOW_SECONDS
        self.site.proxy.mode = self.mode

    def heal(self) -> None:
        """Mend it."""
        self.site.proxy.mode = Mode.PASS


class Reset(_Network):
    """Connections are reset, and every new one too."""

    name = "reset"
    mode = Mode.RESET

    def is_there(self) -> bool:
        """A new one is reset."""
        return self.site.said("PING") == RESET


class HalfOpen(_Network):
    """Connections stay open and carry nothing; those stay dead when the way is mended."""

    name = "half-open"
    least_seconds = _UNTIL_REFUSED
    mode = Mode.BLACKHOLE

    def is_there(self) -> bool:
        """A new one carries nothing."""
        return self.site.said("PING", patience=_SILENT_SECONDS) == SILENT


class Slow(_Network):
    """Every reply comes 2 s late, and is one all the same."""

    name = "2 s latency"
    mode = Mode.LATENCY
    cuts_reads = False
    refuses_writes = False

    def is_there(self) -> bool:
        """A reply comes, and comes late."""
        began = time.monotonic()
        return self.site.said("PING") == "+PONG" and time.monotonic() - began >= SLOW_SECONDS


class DroppedMessages(_Network):
    """Subscribers hear nothing; all else passes."""

    name = "dropped messages"
    mode = Mode.DROP_PUSH
    cuts_reads = False
    refuses_writes = False

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._before = site.proxy.dropped

    def is_there(self) -> bool:
        """Some message was kept from the server."""
        return until(lambda: self.site.proxy.dropped > self._before, patience=2)


class Loading(Fault):
    """Redis comes back with much to load, and refuses everything until it has."""

    name = "LOADING"
    least_seconds = 2.0  # a write waits for about one, in case that is enough

    def begin(self) -> None:
        """Restart it, so that loading takes longer than the fault may last."""
        running = self.site.redis
        with client(running) as direct:
            if not direct.exists("filler:0"):
                filling = direct.pipeline(transaction=False)
                for number in range(_FILLER):
                    filling.set(f"filler:{number}", b"")
                filling.execute()
            direct.config_set("key-load-delay", _LOAD_DELAY)
            direct.config_rewrite()
        running.kill()
        running.start(wait=False)
        # It refuses as soon as it reads its log.
        if not until(self.is_there, patience=10):
            raise RuntimeError(f"Redis does not load slowly:\n{running.log[-2000:]}")

    def heal(self) -> None:
        """Let it load as fast as it can."""
        self._fast()
        self.site.redis.wait()
        self._fast(rewrite=True)

    def is_there(self) -> bool:
        """It says that it loads."""
        return self.site.said("PING").startswith("-LOADING")

    def _fast(self, *, rewrite: bool = False) -> None:
        with client(self.site.redis) as direct:
            direct.config_set("key-load-delay", 0)
            if rewrite:
                direct.config_rewrite()


class OutOfMemory(Fault):
    """Redis takes no writes, for its memory is full."""

    name = "out of memory"
    cuts_reads = False

    def begin(self) -> None:
        """Allow it one byte."""
        self.site.redis.run("CONFIG", "SET", "maxmemory", 1)

    def heal(self) -> None:
        """Allow it all."""
        self.site.redis.run("CONFIG", "SET", "maxmemory", 0)

    def is_there(self) -> bool:
        """It refuses to write for that reason."""
        return self.site.said(_WRITE).startswith("-OOM")


class ReadOnly(Fault):
    """The primary is made a replica of another that has its data: a failover that this server's URL did not follow.

    Writes go to the new primary meanwhile, and the old one has them when it is primary again.
    """

    name = "READONLY"
    writable = True
    cuts_reads = False

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._other = RedisProcess(site.folder / "other", repl_diskless_sync_delay=0)

    @property
    def url(self) -> str:
        """The new primary's."""
        return self._other.url

    def begin(self) -> None:
        """Copy it to another Redis, and turn the two round."""
        self._other.start()
        _follow(self._other, self.site.redis)
        self._other.run("REPLICAOF", "NO", "ONE")
        self.site.redis.run("CONFIG", "SET", "repl-diskless-sync-delay", 0)
        _follow(self.site.redis, self._other)

    def heal(self) -> None:
        """Wait until it has what was written, and make it a primary again."""
        offset = self._other.run("INFO", "replication")["master_repl_offset"]
        running = self.site.redis
        if not until(
            lambda: running.run("INFO", "replication").get("slave_repl_offset", 0) >= offset, patience=10
        ):
            raise RuntimeError(f"the old primary does not have what was written:\n{running.log[-2000:]}")
        running.run("REPLICAOF", "NO", "ONE")

    def is_there(self) -> bool:
        """It refuses to write for that reason."""
        return self.site.said(_WRITE).startswith("-READONLY")

    def close(self) -> None:
        """Stop the other."""
        self._other.stop()


class ChangedPassword(Fault):
    """Redis wants a password that the server does not have, and its connections are closed."""

    name = "changed password"
    writable = True

    @property
    def url(self) -> str:
        """With the password."""
        return self.site.redis.url.replace("redis://", f"redis://:{_PASSWORD}@")

    def begin(self) -> None:
        """Set it."""
        with client(self.site.redis) as direct:
            direct.config_set("requirepass", _PASSWORD)
            for kind in ("normal", "pubsub"):
                direct.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def heal(self) -> None:
        """Take it away."""
        with client(self.site.redis, self.url) as direct:
            direct.config_set("requirepass", "")

    def is_there(self) -> bool:
        """It wants one."""
        return self.site.said("PING").startswith("-NOAUTH")


class Flush(Fault):
    """All data is gone; the publisher publishes everything again, as new versions."""

    name = "FLUSHALL"
    publishes_all = True
    cuts_reads = False
    refuses_writes = False

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._before = self._epoch()

    def begin(self) -> None:
        """Flush."""
        self.site.redis.run("FLUSHALL")

    def heal(self) -> None:
        """Publish."""
        self.site.publish_again()

    def is_there(self) -> bool:
        """The store is gone, or another one."""
        return self._epoch() != self._before

    def _epoch(self) -> object:
        return self.site.redis.run("HGET", "promptmux:store", "epoch")


FAULTS: tuple[type[Fault], ...] = (
    DownAtStart,
    Kill,
    Stopped,
    Reset,
    HalfOpen,
    Slow,
    Loading,
    OutOfMemory,
    ReadOnly,
    ChangedPassword,
    DroppedMessages,
    Flush,
)


def _end(site: Site) -> None:
    """Let nothing listen any more, for the server either, whose way goes through the proxy."""
    site.redis.kill()
    site.proxy.mode = Mode.REFUSE


def _start(site: Site) -> None:
    """Start Redis on its data; the way to it is there when it answers."""
    site.redis.start()
    site.proxy.mode = Mode.PASS


def _is_away(site: Site) -> bool:
    return not site.redis.running and site.said("PING") == REFUSED


def _follow(replica: RedisProcess, primary: RedisProcess) -> None:
    """Make one the replica of the other, and wait until it has its data."""
    replica.run("REPLICAOF", "127.0.0.1", primary.port)

    def has_it() -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(replica.run("INFO", "replication")["master_link_status"] == "up")
        return False

    if not until(has_it, patience=20):
        raise RuntimeError(f"no replica after 20 s ({time.strftime('%X')}):\n{replica.log[-2000:]}")
