"""docs/guides/docker.md names targets, arguments, files, variables and commands that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from typer.main import get_command

from promptmux.__main__ import build
from server.settings import unknown_variables
from tests.deploy.dockerfile import read_dockerfile
from tests.deploy.test_docker_compose import OF_COMPOSE, SERVICES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "guides" / "docker.md").read_text("utf-8")
FILE = read_dockerfile(ROOT / "docker" / "Dockerfile")
COMMANDS = get_command(build())


def commands() -> list[list[str]]:
    """Every command of the guide's code blocks, as words."""
    found = []
    for block in re.findall(r"```sh[^\n]*\n(.*?)```", TEXT, re.S):
        block = re.sub(r"<<'END'\n.*?\nEND\n", "\n", block, flags=re.S)
        lines = block.replace("\\\n", " ").splitlines()
        found += [part for line in lines for part in split(shlex.split(line, comments=True))]
    return found


def split(words: list[str]) -> list[list[str]]:
    """At `&&`; a variable before a command is none of its words."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        elif parts[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            parts[-1].append(word)
    return [part for part in parts if part]


def of_promptmux() -> list[list[str]]:
    """What promptmux is told, on the host or in a container."""
    found = []
    for words in commands():
        if words[0] == "promptmux":
            found.append(words[1:])
        elif words[0] == "docker":
            for place, word in enumerate(words):
                inside = word.startswith("promptmux:") or (word == "server" and "run" in words)
                if inside and "--entrypoint" not in words and words[1] != "build" and words[place + 1 :]:
                    found.append(words[place + 1 :])
                if words[place : place + 2] == ["server", "promptmux"]:
                    found.append(words[place + 2 :])
    return found


def test_there_are_commands() -> None:
    assert len(commands()) > 15
    assert {words[0] for words in of_promptmux()} >= {"key", "publish", "train", "doctor"}


@pytest.mark.parametrize("words", of_promptmux(), ids=" ".join)
def test_what_promptmux_is_told_it_understands(words: list[str]) -> None:
    command = COMMANDS.commands[words[0]]  # type: ignore[attr-defined]
    given = [
        str(ROOT / "examples/prompts/sentiment.safetensors") if "*" in word else word for word in words[1:]
    ]
    with click.Context(COMMANDS) as parent:
        command.make_context(words[0], given, parent=parent)


def test_targets_and_build_arguments_are_the_dockerfile_s() -> None:
    assert set(re.findall(r"--target +(\w+)", TEXT)) == {"cpu", "cuda", "trainer"} <= FILE.stages.keys()
    known = dict(FILE.arguments)
    for stage in FILE.stages.values():
        for one in stage.of("ARG"):
            name, has_default, default = one.value.partition("=")
            if has_default:
                known[name] = default
    listed = re.findall(r"^\| `([A-Z_]+)` \|.*\| (?:`(.*)`|none) \|$", TEXT, re.M)
    assert dict(listed) == known
    assert set(re.findall(r"--build-arg (\w+)=", TEXT)) <= known.keys()


def test_files_and_services_are_there() -> None:
    named = set(re.findall(r"\b(?:docker|docs)/[\w./-]+", TEXT)) | set(
        re.findall(r"\bexamples/prompts\b", TEXT)
    )
    for path in named:
        if not path.startswith("docker/secrets"):
            assert (ROOT / path).exists(), path
    assert "docker/make-secrets.sh" in named
    for words in commands():
        if words[:2] == ["docker", "compose"] and words[4] in ("exec", "restart"):
            assert words[5] in SERVICES
    inside = {one.value.split()[-1] for one in FILE.stages["runtime"].of("COPY")}
    for path in re.findall(r"/usr/(?:share|local/lib)/promptmux/[\w.]+", TEXT):
        assert path in inside | {"/usr/share/promptmux/sbom.cdx.json"}


def test_variables_are_settings() -> None:
    assert not set(unknown_variables(re.findall(r"\bPROMPTMUX_[A-Z_]+", TEXT))) - OF_COMPOSE


def test_volumes_and_user_are_the_image_s() -> None:
    for stage in ("runtime", "trainer"):
        for volume in FILE.stages[stage].of("VOLUME")[-1].words():
            assert re.search(rf"-v \S+:{volume}\b", TEXT), volume
    assert FILE.stages["cpu"].of("USER")[0].value in TEXT
