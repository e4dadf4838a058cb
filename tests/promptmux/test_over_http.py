"""Commands that speak to a server: what they do when it, or the network, misbehaves."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from promptmux.__main__ import build
from tests.client.misbehaving import (
    ACKNOWLEDGED,
    ANSWER,
    PATIENCE,
    VERSION,
    Misbehaving,
    answer,
    problem,
    reset,
    silent,
)
from tests.promptmux.test_commands import PROMPTS, ROOT, here, one_line, run

OTHER = "cd" * 32
TASK = {
    "task_id": "t", "revision": 3,
    "aliases": {
        "current": {"revision": 6, "targets": [{"version": OTHER, "weight": 95}, {"version": VERSION, "weight": 5}]}
    },
    "versions": [
        {"version": version, "size": 10, "published_at": 1.0, "method": "head-only", "labels": 2}
        for version in (VERSION, OTHER)
    ],
}  # fmt: skip
BUSY = problem(503, "draining", Retry_After="0")


def test_a_server_that_is_busy_for_a_moment_is_no_error() -> None:
    with Misbehaving([BUSY, answer({**ANSWER, "data": ANSWER["data"] * 2})]) as server:  # type: ignore[operator]
        shown = run("predict", "t", "one", "two", "--server", server.url)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("positive") == 2
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "arguments",
    [["tasks"], ["rollback", "t", "ab"], ["promote", "t"], ["canary", "t"], ["predict", "t", "x"]],
)
def test_nobody_waits_longer_than_asked_for(arguments: list[str]) -> None:
    with Misbehaving([silent]) as server:
        told = one_line(here(*arguments, "--server", server.url, "--timeout", "1"))
        assert server.abandoned.wait(PATIENCE)
    assert f"promptmux: {server.url}: no answer in time (1 s, tries: 1)" in told


@pytest.mark.parametrize(
    "arguments",
    [["rollback", "t", "cd"], ["promote", "t"], ["canary", "t", "--version", "ab", "--weight", "9"]],
)
def test_moves_are_tried_again_and_never_guessed_about(arguments: list[str]) -> None:
    task, done = answer(TASK), answer(ACKNOWLEDGED)
    with Misbehaving([BUSY, task, reset, done, task]) as server:
        shown = here(*arguments, "--server", server.url)
    assert shown.returncode == 0, shown.stderr
    with Misbehaving([task, reset, problem(412, "revision_conflict")]) as server:
        told = one_line(here(*arguments, "--server", server.url))
    assert "412 revision_conflict" in told
    assert "whether it took effect is not known" in told


def test_a_publish_is_tried_again() -> None:
    uploaded = answer({"created": True, **ACKNOWLEDGED}, 201)
    unknown = problem(404, "unknown_task")
    # What creates an alias is sent again only after an answer that says that nothing was done.
    starting = problem(503, "not_ready")
    with Misbehaving([reset, uploaded, BUSY, unknown, starting, answer(ACKNOWLEDGED)]) as server:
        file = str(PROMPTS / "sentiment.safetensors")
        shown = here("publish", file, "--server", server.url)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("published sentiment")
    assert [request.method for request in server.requests] == ["PUT", "PUT", "GET", "GET", "PUT", "PUT"]
    assert server.requests[-1].headers["if-none-match"] == "*"


@pytest.mark.parametrize("command", ["predict", "tasks", "publish", "rollback", "canary", "promote"])
def test_every_command_of_a_server_takes_a_timeout(command: str) -> None:
    shown = CliRunner().invoke(build(), [command, "--help"]).output
    assert "--server" in shown
    assert "--timeout" in shown


def test_who_only_asks_a_server_does_not_load_torch() -> None:
    """Not even to say that nobody is there: that would take seconds, at a time when nobody has them."""
    code = (
        "import sys; from promptmux.__main__ import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    )
    arguments = ["tasks", "--server", "http://127.0.0.1:1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("promptmux: http://127.0.0.1:1: ")
