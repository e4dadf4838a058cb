"""A real Prometheus and its promtool: from PATH, else out of Debian's package without root (kept in the cache).

Owns: where the programs come from, and the life of one Prometheus on loopback. Must not know: what it scrapes.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtest.faults.fetched_program import NoProgram, find_program
from loadtest.ports import free_port
from loadtest.server_process import process, wait_for

PATIENCE = 600.0  # seconds; only ever reached when something is broken


def program(name: str) -> Path:
    """`prometheus` or `promtool`; without them the test is skipped, and says so loudly."""
    try:
        prometheus = find_program(
            "prometheus", packages=("prometheus",), inside="usr/bin/prometheus", version_flag="--version"
        )
    except NoProgram as error:
        pytest.skip(f"NO PROMETHEUS: nothing here is evaluated by a real one: {error}")
    if name == "prometheus":
        return prometheus
    beside = prometheus.parent / "usr/bin/promtool"  # of the package that was fetched
    found = shutil.which("promtool") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip("NO PROMTOOL: the rules are not evaluated: there is a prometheus without it")
    return Path(found)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it; both of its outputs are in `stdout`."""
    return subprocess.run(
        [str(program("promtool")), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Prometheus:
    """One that runs, asked over its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """What it answers; fails with its own words where it does not."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=PATIENCE)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression as they stand now."""
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def wait_for(self, expr: str) -> None:
        """Until the expression has a value."""
        end = time.monotonic() + PATIENCE
        while not self.query(expr):
            assert time.monotonic() < end, (expr, self.get("targets")["activeTargets"])
            time.sleep(0.2)


@contextlib.contextmanager
def running(folder: Path, scrapes: Mapping[str, Any], rules: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes every two seconds, until the block ends."""
    binary = program("prometheus")
    config = {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(rules)],
        "scrape_configs": [dict(scrapes)],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    command = [
        str(binary),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with process(command) as started:
        wait_for(started, f"http://127.0.0.1:{port}/-/ready", patience=PATIENCE)
        yield Prometheus(f"http://127.0.0.1:{port}")
