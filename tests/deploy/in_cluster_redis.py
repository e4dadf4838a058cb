"""The Redis of components/redis as a real process: its configuration, its users, its pod's commands.

Owns: putting the manifest's paths and port where this machine has them. Must not know: what is tested with it.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.redis_server import find_redis_server
from loadtest.ports import free_ports
from tests.deploy.manifests import K8S


class ClusterRedis:
    """One Redis with the manifest's redis.conf, over the data and the secrets in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.data, self.secrets = folder / "data", folder / "secrets"
        self.data.mkdir()
        shutil.copytree(K8S / "secrets", self.secrets)
        (self.port,) = free_ports(1)
        self._conf, self._log = folder / "redis.conf", folder / "redis.log"
        text = (K8S / "components" / "redis" / "redis.conf").read_text()
        moved = {
            "bind * -::*": "bind 127.0.0.1",
            "port 6379": f"port {self.port}",
            "dir /data": f'dir "{self.data}"',
            "aclfile /etc/redis/users/users.acl": f'aclfile "{self.secrets}/users.acl"',
        }
        for old, new in moved.items():
            assert text.count(f"{old}\n") == 1, old
            text = text.replace(f"{old}\n", f"{new}\n")
        self._conf.write_text(text)
        self._popen: subprocess.Popen[bytes] | None = None

    def new_password(self) -> str:
        """Run the script that makes one; the URL that it wrote, with this Redis's address."""
        subprocess.run([self.secrets / "redis-password.sh"], check=True, capture_output=True, timeout=600)
        return self.url

    @property
    def url(self) -> str:
        """The store's URL as servers are given it, but for the address."""
        (line,) = (
            one for one in (self.secrets / "store.env").read_text().splitlines() if one.startswith("url=")
        )
        assert "@promptmux-redis:6379/" in line
        return line.removeprefix("url=").replace("promptmux-redis:6379", f"127.0.0.1:{self.port}")

    def start(self) -> None:
        """Start it, and wait until its port is open, as the startup probe does."""
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [str(find_redis_server()), str(self._conf)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + 30
        while True:
            try:
                self.client("nobody", "x").ping()
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                assert self._popen.poll() is None, self._log.read_text()
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.02)

    def client(self, user: str | None = None, password: str | None = None) -> Any:
        """A client that asks once."""
        return redis.Redis(
            "127.0.0.1",
            self.port,
            username=user,
            password=password,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=10,
        )

    def stop(self) -> int:
        """End it as a kubelet does; its exit code."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGTERM)
        return self._popen.wait(30)

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
