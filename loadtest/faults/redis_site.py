"""What there is to break around a Redis, and what a fault is.

Owns: the form of a fault. Must not know: any one of them.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.fault_proxy import ThreadedProxy
from loadtest.faults.faulty_server import FaultyServer
from loadtest.faults.redis_process import RedisProcess

REFUSED: Final = "refused"
RESET: Final = "reset"
SILENT: Final = "silent"


@dataclass(frozen=True)
class Site:
    """What there is to break. The server reaches the Redis through the proxy, all others reach it directly."""

    redis: RedisProcess
    proxy: ThreadedProxy
    server: FaultyServer
    folder: Path  # for another Redis
    pause_load: Callable[[], None]
    resume_load: Callable[[], None]
    publish_again: Callable[[], None]  # every task that was ever known
    publish_meanwhile: Callable[[], None]  # something, directly

    def said(self, command: str, *, patience: float = 10.0) -> str:
        """The first line that comes back for a command on a new connection through the proxy, or REFUSED and so on."""
        try:
            with socket.create_connection(("127.0.0.1", self.proxy.port), patience) as asked:
                asked.sendall(f"{command}\r\n".encode())
                return asked.makefile("rb").readline().decode().rstrip()
        except ConnectionRefusedError:
            return REFUSED
        except ConnectionError:
            return RESET
        except TimeoutError:
            return SILENT


class Fault(ABC):
    """One fault; an object is used for one run."""

    name: ClassVar[str]
    writable: ClassVar[bool] = False  # a second client can write while it lasts
    cuts_reads: ClassVar[bool] = True  # the server learns nothing of the store while it lasts
    restarts_server: ClassVar[bool] = False
    publishes_all: ClassVar[bool] = False  # healing is publishing every task anew
    refuses_writes: ClassVar[bool] = True  # a write through the server comes to a 503 while it lasts
    least_seconds: ClassVar[float] = 1.0  # that it must last to be noticed

    def __init__(self, site: Site) -> None:
        self.site = site
        self.started_in: float | None = None  # seconds that a server took to be ready while it lasted

    @property
    def url(self) -> str:
        """Where a second client writes while the fault lasts."""
        return self.site.redis.url

    @abstractmethod
    def begin(self) -> None:
        """Break it."""

    @abstractmethod
    def heal(self) -> None:
        """Mend it, and wait until Redis answers."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether the fault is really there, as seen from where the server stands; asked while it lasts."""

    def close(self) -> None:  # noqa: B027 — most have nothing
        """End what it has started beside, whether it was healed or not."""


def client(running: RedisProcess, url: str | None = None) -> redis.Redis:
    """A client of it that sends nothing twice."""
    return redis.Redis.from_url(url or running.url, socket_timeout=10, retry=Retry(NoBackoff(), 0))
