"""Whether what a command names exists: its flags, files, routes, services, targets.

Owns: a check for each program that commands of the docs call and no test runs. Must not know: pages, and how kubectl
reads a command (`kubectl`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import itertools
import json
import re
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import typer
import yaml
from typer.main import get_command

from promptmux.__main__ import build
from scripts.reference_words import ROUTES
from server import Settings, SettingsError
from server.auth import SCOPES
from server.errors import InvalidRequest
from server.schemas import ClassifyBody, parse_body
from tests.docs import kubectl
from tests.docs.pages import ROOT
from tests.docs.shell import commands

# Of every system, or of the image of the machine that they are for; what they are given is looked at by `paths`.
PLAIN = {
    "cat", "cp", "cut", "df", "export", "git", "grep", "haproxy", "head", "id", "kind", "locust", "nvidia-smi",
    "printf", "sed", "sleep", "tail", ".",
}  # fmt: skip
_OURS = ("deploy", "docker", "docs", "examples", "loadtest", "scripts", "tests")
_READERS = ("docker/secrets", "loadtest/results")  # made on the reader's machine
READERS_OWN = {"from_peft.py"}  # saved from the page; tests/docs/test_peft.py runs it
_GATEWAY = "gateway:8080"
_COMMANDS = get_command(build())
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer may bring a click of its own along
Complaints = Iterator[str]


def complaints(words: Sequence[str], *, bare: bool = False) -> Complaints:
    """What a command names and there is not. `bare`: its program's or subcommand's name alone is no command to type."""
    program, *rest = words
    if program != "kubectl":  # which writes deploy/NAME for a Deployment
        yield from paths(words)
    if program in _CHECKS:
        if not (bare and len(rest) <= 1 and not any(word.startswith("-") for word in rest)):
            yield from _CHECKS[program](rest)
        elif program == "promptmux" and rest[0] not in _subcommands():
            yield f"there is no promptmux {rest[0]}"
    elif "/" not in program and program not in PLAIN:
        yield f"no test knows the program {program}: run the block, or say in tests/docs/known.py how to check it"


def paths(words: Sequence[str]) -> Complaints:
    """Files of this repository that are named and not there."""
    for word in words:
        for part in re.split(r"[\s=:,@]+", word.replace("$PWD/", "").replace("../my-fleet/", "deploy/k8s/")):
            path = part.removeprefix("./")
            if not path.startswith(tuple(f"{folder}/" for folder in _OURS)) or path.startswith(_READERS):
                continue
            if not list(ROOT.glob(path.rstrip("/"))):
                yield f"there is no {path}"


def _subcommands() -> Mapping[str, Any]:
    return _COMMANDS.commands  # type: ignore[attr-defined,no-any-return]


def _promptmux(words: Sequence[str]) -> Complaints:
    """The command line's own parser reads the command; nothing is done."""
    if not words or words[0] not in _subcommands():
        yield f"there is no promptmux {words[:1]}"
    elif words[0] == "serve" and "--help" not in words:
        try:
            Settings.load(words[1:])
        except (SettingsError, SystemExit) as error:
            yield f"promptmux serve: {error}"
    elif "--help" not in words:
        # A file of many must be there to be read; the reader's own are stood in for.
        given = ["pyproject.toml" if word == "FILE" or "*" in word else word for word in words[1:]]
        try:
            _subcommands()[words[0]].make_context(words[0], given)
        except _UsageError as error:
            yield f"promptmux {words[0]}: {error}"
    scopes = {scope for flag, scope in itertools.pairwise(words) if flag == "--scope"}
    yield from (f"there is no scope {scope}" for scope in scopes - set(SCOPES))


def _python(words: Sequence[str]) -> Complaints:
    if words[:1] != ["-m"]:
        if words[0] not in READERS_OWN and not (ROOT / words[0]).is_file():
            yield f"there is no {words[0]}"
        return
    module, *rest = words[1:]
    try:
        there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        yield f"there is no module {module}"
        return
    flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
    said = _help(module, *(word for word in rest[:1] if not word.startswith("-")))
    yield from (
        f"python -m {module} has no flag {flag}" for flag in flags if not re.search(rf"{flag}\b", said)
    )


@functools.cache
def _help(module: str, *words: str) -> str:
    """What `python -m MODULE WORDS --help` prints; ours runs in this process, which imports once what all import."""
    if not module.startswith(_OURS):
        shown = subprocess.run(
            [sys.executable, "-m", module, *words, "--help"],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        return shown.stdout if shown.returncode == 0 else ""
    said, code = io.StringIO(), None
    on_sigterm = signal.getsignal(signal.SIGTERM)  # a program sets its own
    try:
        with (
            contextlib.redirect_stdout(said),
            mock.patch.object(sys, "argv", [module, *words, "--help"]),
            warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # some are imported already
        ):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    return said.getvalue() if not code else ""


def _launcher(words: Sequence[str], parser: argparse.ArgumentParser) -> Complaints:
    """A launcher of processes knows its flags; what it starts is promptmux, whose parser reads the rest."""
    own, _, started = " ".join(words).partition(" -m ")
    flags = {word for word in own.split() if word.startswith("--")}
    known = parser.format_help()
    yield from (f"the launcher has no flag {flag}" for flag in flags if not re.search(rf"{flag}\b", known))
    if not started.startswith("promptmux "):
        yield f"it starts {started[:20]!r}, not promptmux"
    else:
        yield from _promptmux(words[words.index("promptmux") + 1 :])


def _torchrun(words: Sequence[str]) -> Complaints:
    from torch.distributed.run import get_args_parser

    yield from _launcher(words, get_args_parser())


def _accelerate(words: Sequence[str]) -> Complaints:
    from accelerate.commands.launch import launch_command_parser

    if words[0] != "launch":
        yield f"no test knows accelerate {words[0]}"
    else:
        # Its own help hides what goes with other hardware; the parser underneath has all of it.
        parser = launch_command_parser()
        whole = argparse.ArgumentParser(
            "accelerate launch", add_help=False, parents=[parser], conflict_handler="resolve"
        )
        yield from _launcher(words[1:], whole)


def _curl(words: Sequence[str]) -> Complaints:
    """The route exists on that port, takes that method, and understands the body."""
    method, body = "GET", None
    for flag, value in itertools.pairwise(words):
        method = value if flag == "-X" else method
        body = value if flag in ("-d", "--data-binary") else body
    if body is not None and "-X" not in words:
        method = "POST"
    urls = [urlsplit(word) for word in words if word.startswith("http")]
    if not urls:
        yield "curl without an address"
    for url in urls:
        if url.port == 9090:
            continue  # Prometheus's own
        if url.netloc != _GATEWAY and url.port not in (8000, 8001):
            yield f"none of our ports: {url.netloc}"
        if not any(_matches(route, method, url.path, admin=url.port == 8001) for route in ROUTES):
            yield f"no route {method} {url.path} on the port of {url.netloc}"
        if url.path == "/classify" and body is not None:
            try:
                parse_body(ClassifyBody, body.encode())
            except InvalidRequest as error:
                yield f"/classify does not take {body}: {error}"
        elif body is not None and body.startswith("{"):
            json.loads(body)


def _matches(route: str, method: str, path: str, *, admin: bool) -> bool:
    wanted, form = route.split()
    both = form in ("/healthz", "/readyz")
    if not both and admin != form.startswith(("/admin", "/metrics")):
        return False
    return wanted == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", form), path) is not None


def _docker(words: Sequence[str]) -> Complaints:
    """Compose's services; what runs in a container is a command of its own. tests/deploy reads the guide itself."""
    if words[0] != "compose" or "…" in words:
        return
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    plain = [word for at, word in enumerate(words[1:]) if words[at] != "-f" and word != "-f"]
    if plain[0] in ("exec", "logs", "restart"):
        if plain[1] not in services:
            yield f"compose has no service {plain[1]}"
        if plain[0] == "exec" and plain[2] != "…":
            yield from complaints(plain[2:])


def _sh(words: Sequence[str]) -> Complaints:
    if words[0] == "-c":
        for command in commands(words[1]):
            yield from complaints(command)


def _make(words: Sequence[str]) -> Complaints:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    yield from (f"make has no target {word}" for word in words if "=" not in word and word not in targets)


def _kubectl(words: Sequence[str]) -> Complaints:
    yield from kubectl.complaints(words)
    if "--" in words:
        yield from complaints(words[words.index("--") + 1 :])


_CHECKS: Mapping[str, Callable[[Sequence[str]], Complaints]] = {
    "accelerate": _accelerate, "curl": _curl, "docker": _docker, "kubectl": _kubectl, "make": _make,
    "promptmux": _promptmux, "python": _python, "sh": _sh, "torchrun": _torchrun,
}  # fmt: skip
