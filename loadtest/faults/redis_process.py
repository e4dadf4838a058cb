"""A real Redis as a process: start it, and end, kill, pause or restart it at will.

Owns: its configuration file, its log and the life of the one process that it started.
Must not know: what a store keeps in it, or any experiment.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.redis_server import find_redis_server
from loadtest.ports import free_ports
from loadtest.server_process import NotStarted

Setting = str | int | bool | Sequence[str]
"""A directive's value as redis.conf writes it; a sequence gives the directive once for each of its values."""


class RedisProcess:
    """One Redis on loopback. As a context manager it runs inside the block; nothing else is ever ended.

    `settings` are redis.conf's directives, with `_` for `-`. The port and the data stay the same over restarts.
    """

    flags: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Setting]] = {
        "save": "",
        "appendonly": True,
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
    }

    def __init__(
        self, folder: Path, port: int | None = None, *, server: Path | None = None, **settings: Setting
    ) -> None:
        self.folder = folder
        self.port = free_ports(1)[0] if port is None else port
        self._server = server or find_redis_server()
        self._settings: dict[str, Setting] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": f'"{folder.absolute()}"',
            "daemonize": False,
            "protected-mode": False,
            **self.defaults,
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
        self._configuration = folder / f"redis-{self.port}.conf"
        self._log = folder / f"redis-{self.port}.log"
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not self.running:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where clients find it."""
        password = self._settings.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    @property
    def log(self) -> str:
        """Everything it has written, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def running(self) -> bool:
        """Whether the process lives; a paused one does."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process().pid

    def start(self, *, wait: bool = True, patience: float = 30.0) -> None:
        """Start it, and wait until it has loaded its data and answers.

        Raises:
            NotStarted: with the end of its log.

        """
        if self.running:
            raise RuntimeError("this Redis runs already")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._popen is None:  # later starts keep what CONFIG REWRITE or a sentinel has written there
            lines = [
                f"{name} {_written(one)}" for name, value in self._settings.items() for one in _each(value)
            ]
            self._configuration.write_text("\n".join(lines) + "\n")
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [str(self._server), str(self._configuration), *self.flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # ctrl-C is for the experiment, which then ends it in order
            )
        if wait:
            try:
                self.wait(patience=patience)
            except BaseException:
                self.kill()
                raise

    def wait(self, *, patience: float = 30.0) -> None:
        """Wait until it has loaded its data and answers.

        Raises:
            NotStarted: it ended, or `patience` seconds have passed; with the end of its log.

        """
        end = time.monotonic() + patience
        while not self._answers():
            if not self.running or time.monotonic() > end:
                raise NotStarted(f"Redis did not start:\n{self.log[-4000:]}")
            time.sleep(0.02)

    def stop(self, *, patience: float = 10.0) -> None:
        """Ask it to end, and make it end after `patience` seconds; nothing happens if it does not run."""
        if not self.running:
            return
        self.resume()  # a paused process would not see the signal
        self._process().send_signal(signal.SIGTERM)
        try:
            self._process().wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it as a crash does, whether it runs or not."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def restart(self) -> None:
        """Stop it, start it again on the same data, and wait."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers until `resume`."""
        self._process().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._process().send_signal(signal.SIGCONT)

    def run(self, *arguments: str | bytes | float) -> Any:
        """One command's answer as redis-py gives it; never sent twice."""
        with redis.Redis.from_url(self.url, socket_timeout=10, retry=Retry(NoBackoff(), 0)) as client:
            return client.execute_command(*arguments)

    def _process(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise RuntimeError("this Redis was never started")
        return self._popen

    def _answers(self) -> bool:
        try:
            self.run("PING")  # refused while it loads, which INFO is not
            # Another Redis may hold the port.
            return bool(self.run("INFO", "server")["process_id"] == self.pid)
        except (redis.ConnectionError, redis.TimeoutError):  # BusyLoadingError is one of them
            return False


class Sentinel(RedisProcess):
    """One Redis Sentinel."""

    flags = ("--sentinel",)
    defaults: ClassVar[Mapping[str, Setting]] = {}


def start_sentinel(
    folder: Path,
    master_port: int,
    quorum: int = 1,
    down_after_ms: int = 500,
    *,
    name: str = "mymaster",
    failover_timeout_ms: int = 3000,
    port: int | None = None,
    server: Path | None = None,
) -> Sentinel:
    """A started sentinel that watches the Redis at `master_port` under `name`; the caller ends it (`with`, `stop`)."""
    watched = (
        f"monitor {name} 127.0.0.1 {master_port} {quorum}",
        f"down-after-milliseconds {name} {down_after_ms}",
        f"failover-timeout {name} {failover_timeout_ms}",
    )
    sentinel = Sentinel(folder, port, server=server, sentinel=watched)
    sentinel.start()
    return sentinel


def _each(value: Setting) -> Sequence[str | int | bool]:
    return [value] if isinstance(value, str | int) else value


def _written(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or '""'
