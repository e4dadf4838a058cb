"""deploy/haproxy/haproxy.cfg as a real HAProxy before real servers, and what a caller sees through it.

Owns: putting the file's addresses where this machine has them, and the fleet behind it. Must not know: what is tested.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.faults.proxy_process import ProxyProcess
from tests.deploy.manifests import ROOT
from tests.integration.conftest import PATIENCE, ServerProcess

CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
SERVED_BY = "X-Served-By"


class Gateway(ProxyProcess):
    """The file, with addresses replaced, and some of its lines where a test compares with others."""

    def __init__(
        self, folder: Path, port: int, ports: Mapping[str, int], changed: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, port, ports)
        moved = {
            "bind :8080": f"bind 127.0.0.1:{port}",
            "tune.bufsize 65536\n": f"tune.bufsize 65536\n    stats socket {folder.absolute()}/haproxy.sock mode 600\n",
            **{f"server {name} {name}:8000": f"server {name} 127.0.0.1:{at}" for name, at in ports.items()},
            **(changed or {}),
        }
        text = CONFIGURATION.read_text()
        for old, new in moved.items():
            assert text.count(old) == 1, f"{old!r} is not once in {CONFIGURATION.name}"
            text = text.replace(old, new)
        self._text = text


class Fleet:
    """Servers over one store, each on ports that stay the same over its restarts."""

    def __init__(self, store: str, flags: Sequence[str], ports: Mapping[str, int]) -> None:
        self.ports = ports
        self._store, self._flags = store, flags
        self._servers: dict[str, ServerProcess] = {}

    def start(self, name: str) -> None:
        """Start one, and wait until it is ready."""
        flags = ("--port", str(self.ports[name]), "--admin-port", "0", "--store", self._store, *self._flags)
        if name in self._servers:
            self._servers[name].stop()  # has ended already, and leaves its pipes open
        self._servers[name] = ServerProcess(*flags)
        self._servers[name].ready()

    def ask_to_end(self, name: str) -> None:
        """SIGTERM."""
        self._servers[name].process.terminate()

    def kill(self, name: str) -> None:
        """End it as a crash does."""
        self._servers[name].stop()

    def ended(self, name: str) -> int:
        """Wait for its end; the exit code."""
        return self._servers[name].exit_code()

    def stop(self) -> None:
        """End them all."""
        for one in self._servers.values():
            one.stop()

    def looks(self) -> dict[str, int]:
        """Requests that found their prompt on the device, and that did not, of all servers."""
        found = {"hits": 0, "misses": 0}
        for one in self._servers.values():
            text = httpx.get(f"{one.admin_url}/metrics", timeout=PATIENCE).text
            for family in text_string_to_metric_families(text):
                what = family.name.removeprefix("promptmux_tier_")
                if what in found and what != family.name:
                    found[what] += int(
                        sum(
                            s.value
                            for s in family.samples
                            if s.name.endswith("_total") and s.labels["tier"] == "device"
                        )
                    )
        return found


class Caller:
    """Asks through the gateway, and remembers who answered."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=PATIENCE)

    def ask(
        self, task_id: str, text: str = "a text", *, told: str | None = "", name: str = "task_id"
    ) -> httpx.Response:
        """One question; the header tells the task unless `told` is another value, or None for no header."""
        header = task_id if told == "" else told
        headers = {} if header is None else {"X-Task-ID": header}
        return self._http.post("/classify", json={name: task_id, "input": text}, headers=headers)

    def owner(self, task_id: str, *, told: str | None = "", name: str = "task_id") -> str:
        """Which server answers for the task."""
        answer = self.ask(task_id, told=told, name=name)
        assert answer.status_code == 200, answer.text
        return answer.headers[SERVED_BY]

    def owners(self, tasks: Sequence[str], *, told: str | None = "") -> dict[str, str]:
        """The same of each of some tasks, asked one after the other."""
        return {task: self.owner(task, told=told) for task in tasks}

    def close(self) -> None:
        """Close its connections."""
        self._http.close()


def shuffled(tasks: Sequence[str], rounds: int) -> list[str]:
    """Each task `rounds` times, in an order that is the same in every run."""
    order = [task for task in tasks for _ in range(rounds)]
    random.Random(7).shuffle(order)
    return order
