"""What stands ready when a page's commands are run, and the one place where words of a page are replaced.

A reader of a page has the server of `make run`, the folder examples/, a file of examples of their own (`reviews.jsonl`)
and a newer prompt of the task `sentiment` (`new.safetensors`). So has each page's shell, in a folder of its own.

REPLACED and the three commands in `_tools` are all that differs from what the page says: ports that are free here, real
versions for those that a page makes up, and training that is over in seconds. What was trained so short beats nothing:
where a page publishes it, `--force` is added.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtest.faults.redis_process import RedisProcess
from loadtest.ports import free_ports
from prompt_store import decode_prompt, encode_prompt, version_of
from tests.docs.pages import ROOT, Block
from tests.server.fakes import prompt_bytes

PATIENCE = 900  # seconds for a page; only ever reached when something is broken

# Pages that need another stage than `demo`, the server of `make run`: `fake` has no server, those that the page starts
# have a formula for a model; `redis` is `fake` with a Redis.
STAGES: Mapping[str, str] = {
    "docs/guides/scale.md": "redis",
    "docs/guides/upgrade.md": "fake",
    "docs/redis.md": "redis",
    "docs/sizing.md": "fake",
}

OLD, NEW = "3f2a", "9b0e"  # on every page: the first digits of the version that serves, and of the new one
PORTS = ("8010", "8011", "8020", "8021", "8030", "8031")  # of servers that a page starts
SHORTER = ("--seeds", "0", "--epochs", "1")  # what is added to `promptmux train --task …`


@dataclass(frozen=True)
class Server:
    """The server of `make run`."""

    url: str
    admin_url: str
    store: str
    sentiment: str  # the version that it was seeded with


@contextmanager
def demo_server(folder: Path) -> Iterator[Server]:
    """Run the very line that `make run` runs, but for its ports and the folder of its store."""
    port, admin = free_ports(2)
    line = make_run_line(f"--port {port} --admin-port {admin}").replace("var/store", str(folder / "store"))
    command = [sys.executable, "-m", "promptmux", *line.split()[1:]]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=log, stderr=log)
    try:
        _until_ready(process, f"http://127.0.0.1:{port}", folder / "server.log")
        seeded = version_of((ROOT / "examples" / "prompts" / "sentiment.safetensors").read_bytes())
        yield Server(
            f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", f"file://{folder}/store", seeded
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def make_run_line(arguments: str) -> str:
    """What `make run` runs once everything is installed."""
    shown = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.ready", "run", f"ARGS={arguments}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return next(line for line in shown.stdout.splitlines() if "promptmux serve" in line)


def _until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while subprocess.run(["curl", "-sf", f"{url}/readyz"], capture_output=True, check=False).returncode:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def as_after_make_run(server: Server) -> None:
    """Undo what another page did: each reader comes to the demo tasks as they were."""
    seeds = {file.stem for file in (ROOT / "examples" / "prompts").glob("*.safetensors")}
    with httpx.Client(base_url=server.admin_url, timeout=600) as admin:
        for task in admin.get("/admin/tasks").raise_for_status().json()["tasks"]:
            if task["task_id"] not in seeds:
                admin.delete(f"/admin/tasks/{task['task_id']}", params={"force": 1}).raise_for_status()
        now = admin.get("/admin/tasks/sentiment/aliases/current").raise_for_status()
        back = {"version": server.sentiment}
        guard = {"If-Match": now.headers["ETag"]}
        admin.put("/admin/tasks/sentiment/aliases/current", json=back, headers=guard).raise_for_status()


@dataclass(frozen=True)
class Outcome:
    """How a page's commands ended: the exit code, the line of the block that ran last, and everything that was said."""

    code: int
    line: int
    said: str


def run_page(name: str, wanted: list[Block], server: Server | None, folder: Path) -> Outcome:
    """Run a page's blocks in order, in one shell, which ends at the first command that fails."""
    with ExitStack() as stack:
        kind = STAGES.get(name, "demo")
        replaced = {port: str(free) for port, free in zip(PORTS, free_ports(len(PORTS)), strict=True)}
        if server is not None:
            as_after_make_run(server)
            replaced |= {
                "127.0.0.1:8000": server.url[7:],
                "127.0.0.1:8001": server.admin_url[7:],
                "file://var/store": server.store,
            }
        if kind == "redis":
            (folder / "redis").mkdir()
            url = stack.enter_context(RedisProcess(folder / "redis")).url.removesuffix("/0")
            replaced |= {
                "redis://promptmux:PASSWORD@redis.internal:6379": url,
                "redis://127.0.0.1:6379": url,
            }
        old, new = _belongings(folder, name, fake=kind != "demo")
        replaced |= {OLD: old[:12], NEW: new[:12]}
        script = ["set -euo pipefail"]
        for block in wanted:
            text = block.text
            for word, instead in replaced.items():
                text = re.sub(rf"(?<![\w]){re.escape(word)}(?![\w])", instead, text)
            script += [f"printf '\\n@@{block.line}\\n'", text]
        tools = _tools(folder, serve="tests.integration.fake_server" if kind != "demo" else "promptmux serve")
        variables = _environment() | {"PATH": f"{tools}:{os.environ['PATH']}"}
        # A server that a page starts without naming its ports takes free ones.
        variables |= {"PROMPTMUX_PORT": "0", "PROMPTMUX_ADMIN_PORT": "0"}
        if server is not None:
            variables |= {"PROMPTMUX_URL": server.url, "PROMPTMUX_ADMIN_URL": server.admin_url}
        try:
            return _shell("\n".join(script), folder, variables)
        finally:
            _end_servers(folder)


def _shell(script: str, folder: Path, variables: Mapping[str, str]) -> Outcome:
    with (folder / "said").open("w+", encoding="utf-8", errors="replace") as said:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            stdout=said,
            stderr=said,
        )
        try:
            code = shell.wait(PATIENCE)
        except BaseException as error:  # whoever ends the run ends what the page was running, too
            os.killpg(shell.pid, signal.SIGKILL)
            code = shell.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        said.seek(0)
        text = said.read()
    begun = re.findall(r"^@@(\d+)$", text, re.M)
    return Outcome(code, int(begun[-1]) if begun else 0, text)


def _belongings(folder: Path, name: str, *, fake: bool) -> tuple[str, str]:
    """Put the reader's files there; the versions of the prompt that serves and of the new one."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    lines = (ROOT / "examples" / "sentiment" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "reviews.jsonl").write_text("\n".join(lines[:48]) + "\n", encoding="utf-8")
    if fake:
        (folder / "prompts").mkdir()
        (folder / "prompts" / "sentiment.safetensors").write_bytes(prompt_bytes())
        old, new = prompt_bytes(), prompt_bytes(favours=1)
    else:
        old = (folder / "examples" / "prompts" / "sentiment.safetensors").read_bytes()
        prompt = decode_prompt(old)
        # Each page has a version of its own, so that none was there before.
        manifest = prompt.manifest.model_copy(update={"training": {"page": name}})
        new = encode_prompt(manifest, dict(prompt.tensors))
    (folder / "new.safetensors").write_bytes(new)
    return version_of(old), version_of(new)


def _tools(folder: Path, *, serve: str) -> Path:
    """Commands that a page's shell finds before all others."""
    tools = folder / ".tools"
    tools.mkdir()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text("# the tools are on PATH already\n")
    written = {
        "python": f'exec "{sys.executable}" "$@"',
        "make": '[ "$*" = run ] || { echo "make $*: not run here"; exit 1; }\ncurl -sf "$PROMPTMUX_URL/readyz"',
        # A server runs in the background, and the command is over when it is ready: a page may start several.
        "promptmux": f"""
case "$1 $*" in
  serve\\ *--help*) ;;
  serve\\ *)
    shift; log="{folder}/server-$$.log"
    "{sys.executable}" -m {serve} --log-format json "$@" >"$log" 2>&1 &
    pid=$!; echo $pid >>"{folder}/.servers"
    until grep -q '"event": "ready"' "$log"; do kill -0 $pid || {{ cat "$log"; exit 1; }}; sleep 0.1; done
    exit 0;;
  train\\ *--task*--publish*) set -- "$@" {" ".join(SHORTER)} --force;;
  train\\ *--task*) set -- "$@" {" ".join(SHORTER)};;
  publish\\ *runs/*) set -- "$@" --force;;
esac
exec "{sys.executable}" -m promptmux "$@"
""",
    }
    for name, body in written.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    return tools


def _environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMUX_")}
    return clean | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "COLUMNS": "120"}


def _end_servers(folder: Path) -> None:
    """End the servers that the page started, and no others."""
    noted = folder / ".servers"
    pids = [int(line) for line in noted.read_text().split()] if noted.exists() else []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 30
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
            time.sleep(0.05)
