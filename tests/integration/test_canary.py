"""A canary that goes wrong under load, in a real process."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from prompt_store import version_of
from tests.integration.conftest import PATIENCE, Serve, ServerProcess
from tests.promptmux.test_commands import here
from tests.server.fakes import BRITTLE, EXPLOSIVE, prompt_bytes

STABLE, OTHER = prompt_bytes(), prompt_bytes(favours=1)
CALLERS = 6


def start_split(server: ServerProcess, canary: bytes, weight: int) -> None:
    task = f"{server.admin_url}/admin/tasks/sentiment"
    octets = {"Content-Type": "application/octet-stream"}
    put = httpx.put(f"{task}/versions/{version_of(canary)}", content=canary, headers=octets)
    assert put.status_code == 201, put.text
    tag = httpx.get(f"{task}/aliases/current").headers["etag"]
    targets = [
        {"version": version_of(STABLE), "weight": 100 - weight},
        {"version": version_of(canary), "weight": weight},
    ]
    moved = httpx.put(f"{task}/aliases/current", json={"targets": targets}, headers={"If-Match": tag})
    assert moved.status_code == 200, moved.text


@dataclass(frozen=True)
class Said:
    """What a caller heard: a version, or an error's code."""

    status: int
    what: str
    after: bool  # asked when the canary was known to be off


class Load:
    """Callers that ask without a pause, each request with a key of its own."""

    def __init__(self, server: ServerProcess) -> None:
        self.answers: list[Said] = []
        self.off = threading.Event()
        self._server, self._stop = server, threading.Event()
        self._pool = ThreadPoolExecutor(CALLERS)
        self._callers = [self._pool.submit(self._ask, caller) for caller in range(CALLERS)]

    def _ask(self, caller: int) -> None:
        with httpx.Client(base_url=self._server.url, timeout=PATIENCE) as client:
            number = 0
            while not self._stop.is_set():
                number += 1
                after = self.off.is_set()
                answer = client.post(
                    "/classify",
                    json={"task_id": "sentiment", "input": ["some words", "and more"]},
                    headers={"X-Request-Key": f"user-{caller}-{number}"},
                )
                body = answer.json()
                what = body["version"] if answer.status_code == 200 else body["code"]
                self.answers.append(Said(answer.status_code, what, after))

    def end(self) -> list[Said]:
        self._stop.set()
        for caller in self._callers:
            caller.result(PATIENCE)
        self._pool.shutdown()
        return self.answers


@pytest.mark.parametrize(
    ("bias", "code", "weight"), [(BRITTLE, "numerical_error", 5), (EXPLOSIVE, "inference_failed", 20)]
)
def test_a_bad_canary_is_taken_off_and_harms_nobody_else(
    serve: Serve, bias: float, code: str, weight: int
) -> None:
    server = serve().ready()
    canary = prompt_bytes(favours=1, bias=bias)
    stable, bad = version_of(STABLE), version_of(canary)
    load = Load(server)
    server.wait_for(lambda: len(load.answers) > 50)
    start_split(server, canary, weight)
    alias = f"{server.admin_url}/admin/tasks/sentiment/aliases/current"
    server.wait_for(lambda: httpx.get(alias).json()["version"] == stable)
    load.off.set()
    server.wait_for(lambda: sum(said.after for said in list(load.answers)) > 200)
    answers = load.end()

    failures = [said for said in answers if said.status != 200]
    assert {said.what for said in failures} == {code}
    # Three are the threshold; the others were drawn while those were being looked at.
    assert 3 <= len(failures) <= 3 + 3 * CALLERS
    assert not [said for said in failures if said.after]
    assert {said.what for said in answers if said.status == 200} == {stable}
    server.wait_for(lambda: bool(server.events("rolled_back")))
    quarantined, *_ = server.events("version_quarantined")
    assert (quarantined["version"], quarantined["code"], quarantined["failures"]) == (bad, code, 3)
    (rolled_back,) = server.events("rolled_back")
    assert (rolled_back["version"], rolled_back["code"], rolled_back["to"]) == (bad, code, [stable])
    history = httpx.get(f"{server.admin_url}/admin/tasks/sentiment/history").json()["events"]
    assert history[0]["actor"] == "auto-rollback"
    metrics = httpx.get(f"{server.admin_url}/metrics").text
    assert f'promptmux_auto_rollbacks_total{{code="{code}"}} 1.0' in metrics
    assert "promptmux_version_requests_total{" not in metrics


def command(server: ServerProcess, *arguments: str) -> str:
    done = here(*arguments, "--server", server.admin_url)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_canary_from_the_command_line(serve: Serve, tmp_path: Path) -> None:
    server = serve().ready()
    file = tmp_path / "prompt.safetensors"
    file.write_bytes(OTHER)
    stable, canary = version_of(STABLE), version_of(OTHER)
    command(server, "publish", str(file), "--alias", "")
    started = command(server, "canary", "sentiment", "--version", canary[:8], "--weight", "20")
    assert "20 %" in started
    versions = [
        httpx.post(
            f"{server.url}/classify",
            json={"task_id": "sentiment", "input": "x"},
            headers={"X-Request-Key": f"user-{number}"},
        ).json()["version"]
        for number in range(40)
    ]
    assert set(versions) == {stable, canary}
    lines = command(server, "canary", "sentiment").splitlines()
    shown = {line.split()[0]: line for line in lines[1:]}
    assert f" {versions.count(canary)} " in shown[canary]
    assert "80 %" in shown[stable]
    assert f"current leads to {canary}" in command(server, "promote", "sentiment")
    assert server.classify().json()["version"] == canary
    assert stable in command(server, "rollback", "sentiment", stable[:8])
    assert server.classify().json()["version"] == stable
