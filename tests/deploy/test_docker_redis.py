"""docker/redis with a real Redis: as compose.yaml starts it, it mends its log, and `promptmux doctor` is content."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from loadtest.faults.redis_server import find_redis_server
from loadtest.ports import free_ports
from prompt_store import open_store
from prompt_store.checkup import examine

ROOT = Path(__file__).resolve().parents[2]
PROMPT = ROOT / "examples" / "prompts" / "sentiment.safetensors"
PASSWORD = "f" * 48
# What this machine's Redis or network may have it say, and compose's has not, or the guide explains.
ELSEWHERE = {"Lua flaw"}


class Redis:
    """The start script, in a folder, with the users that make-secrets.sh writes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)[0]
        self.url = f"redis://promptmux:{PASSWORD}@127.0.0.1:{self.port}/0"
        script = (ROOT / "docker" / "make-secrets.sh").read_text("utf-8")
        users = re.search(r"redis\.acl\" <<END\n(.*?)END\n", script, re.S)
        assert users
        (folder / "redis.acl").write_text(users[1].replace("$redis", PASSWORD), "utf-8")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        programs = {str(find_redis_server().parent), *os.environ["PATH"].split(":")}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "sh",
                    ROOT / "docker" / "redis" / "start.sh",
                    "--port",
                    str(self.port),
                    "--aclfile",
                    "redis.acl",
                ],
                cwd=self.folder,
                env={"PATH": ":".join(programs)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def publish(self) -> bool:
        """Whether the store had not had the prompt before."""

        async def publish() -> bool:
            store = open_store(self.url)
            done = await store.publish(PROMPT.read_bytes())
            await store.aclose()
            return done.created

        return asyncio.run(publish())


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Redis]:
    if not (shutil.which("redis-check-aof") or (find_redis_server().parent / "redis-check-aof").exists()):
        pytest.skip("no redis-check-aof beside redis-server: docker/redis/start.sh was not run")
    server = Redis(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def findings(url: str) -> dict[str, str]:
    """What `promptmux doctor` would have changed, by the name of the check."""
    return {one.name: one.found for one in asyncio.run(examine(url, deep=True)) if one.verdict != "ok"}


def test_doctor_has_nothing_to_change(started: Redis) -> None:
    started.publish()
    assert findings(started.url).keys() <= ELSEWHERE


def test_only_who_has_a_password_may_do_anything(started: Redis) -> None:
    for password in (None, "", "default"):
        with (
            redis.Redis(port=started.port, password=password) as nobody,
            pytest.raises(redis.AuthenticationError),
        ):
            nobody.ping()
    with redis.Redis(port=started.port, username="health", password="health") as health:
        assert health.ping()
        for command in ("KEYS *", "INFO", "CONFIG GET *", "GET x", "ACL WHOAMI", "SUBSCRIBE x"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                health.execute_command(*command.split())


def test_it_starts_again_with_its_data_after_the_log_was_torn(started: Redis) -> None:
    assert started.publish()
    started.stop()
    (last,) = (started.folder / "appendonlydir").glob("*.incr.aof")
    whole = last.read_bytes()
    last.write_bytes(whole + b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$100\r\nto")
    started.start()
    assert "Successfully truncated AOF" in started.log
    assert last.read_bytes()[: len(whole)] == whole
    assert not started.publish()
    assert findings(started.url).keys() <= ELSEWHERE
