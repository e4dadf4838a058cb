"""What docker/ names is there: files, commands, settings, ports, users, pins. Nothing is built here."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from typer.main import get_command

from promptmux.__main__ import build
from server.settings import Settings, unknown_variables
from tests.deploy.dockerfile import Ignored, Stage, read_dockerfile

ROOT = Path(__file__).resolve().parents[2]
FILE = read_dockerfile(ROOT / "docker" / "Dockerfile")
IGNORED = Ignored(ROOT / ".dockerignore")
TARGETS = ("cpu", "cuda", "trainer")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
COMMANDS = get_command(build())


def stages_of(target: str) -> list[Stage]:
    """The stage and those below it, the lowest first."""
    stages = [FILE.stages[target]]
    while (base := stages[0].base) in FILE.stages:
        stages.insert(0, FILE.stages[base])
    return stages


def pins(name: str) -> dict[str, str]:
    lines = ((ROOT / name).read_text("utf-8")).splitlines()
    texts = [text for line in lines if (text := line.partition("#")[0].strip())]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][^\s=]*", text) for text in texts), (
        f"{name}: not all is pinned"
    )
    return dict(text.split("==") for text in texts)


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no hadolint on the PATH: docker/Dockerfile was not linted")
    done = subprocess.run(
        [program, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert not done.stdout + done.stderr
    assert done.returncode == 0


def test_the_targets_are_there_and_the_last_is_cpu() -> None:
    assert set(TARGETS) <= FILE.stages.keys()
    assert list(FILE.stages)[-1] == "cpu"


def test_what_is_copied_is_there_and_may_be_seen() -> None:
    for stage in FILE.stages.values():
        for one in stage.of("COPY"):
            for source in one.value.split()[:-1] if not one.flag("from") else ():
                here = ROOT / source
                assert here.exists(), f"line {one.line}: {source}"
                files = [here] if here.is_file() else [file for file in here.rglob("*") if file.is_file()]
                assert any(file.relative_to(ROOT) not in IGNORED for file in files), (
                    f".dockerignore hides {source}"
                )


def test_stages_take_from_stages_that_are_there() -> None:
    for stage in FILE.stages.values():
        for one in stage.instructions:
            sources = one.flag("from") + [
                re.search(r"from=([^,]+)", mount)[1]  # type: ignore[index]
                for mount in one.flag("mount")
            ]
            assert set(sources) <= FILE.stages.keys(), f"line {one.line}"


def test_every_package_of_ours_is_in_the_wheel() -> None:
    copied = {one.value.split()[0] for one in FILE.stages["wheel"].of("COPY")}
    assert {name for name in PROJECT["tool"]["setuptools"]["packages"] if "." not in name} <= copied


def tracked() -> Iterator[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout: which files belong to the project is not known")
    yield from map(Path, filter(None, done.stdout.split("\0")))


def test_a_build_sees_our_packages_whole() -> None:
    packages = {name for name in PROJECT["tool"]["setuptools"]["packages"] if "." not in name}
    files = [file for file in tracked() if file.parts[0] in packages]
    assert len(files) > 100
    assert not [file for file in files if file in IGNORED]


@pytest.mark.parametrize(
    "path",
    [
        "docker/secrets/api-keys", "docker/secrets.x1/server.toml", ".git/config", ".venv/bin/python", "api-keys",
        "runs/x/prompt.safetensors", "var/store/catalogue.sqlite", "server/__pycache__/app.cpython-311.pyc",
        "promptmux/commands/__pycache__/key.cpython-311.pyc", "examples/sentiment/train.jsonl", "tests/conftest.py",
    ],
)  # fmt: skip
def test_a_build_does_not_see(path: str) -> None:
    assert Path(path) in IGNORED


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_a_user_that_it_makes(target: str) -> None:
    stages = stages_of(target)
    (user,) = [one.value for stage in stages for one in stage.of("USER")]
    uid, gid = user.split(":")
    assert int(uid) >= 10000
    assert int(gid) >= 10000
    commands = " ".join(one.value for stage in stages for one in stage.of("RUN"))
    assert f"groupadd --gid {gid} promptmux" in commands
    assert f"useradd --uid {uid} --gid {gid}" in commands
    last = [one.name for one in stages[-1].instructions]
    assert "RUN" not in last[last.index("USER") :]


@pytest.mark.parametrize("target", TARGETS)
def test_what_it_starts_is_a_command_of_ours(target: str) -> None:
    stages = stages_of(target)
    (entrypoint,) = [one.words() for stage in stages for one in stage.of("ENTRYPOINT")]
    command = [one.words() for stage in stages for one in stage.of("CMD")][-1]
    assert entrypoint == ["promptmux"]
    assert "promptmux" in PROJECT["project"]["scripts"]
    assert command[0] in COMMANDS.commands  # type: ignore[attr-defined]
    assert command[0] == ("train" if target == "trainer" else "serve")


def image_variables() -> dict[str, str]:
    """The image's environment, with the file that it names where it lies here."""
    runtime = FILE.stages["runtime"]
    variables = {key: value for one in runtime.of("ENV") for key, value in one.pairs({"PATH": ""}).items()}
    (source,) = [
        one.value.split()[0]
        for one in runtime.of("COPY")
        if one.value.endswith(f" {variables['PROMPTMUX_CONFIG']}")
    ]
    return variables | {"PROMPTMUX_CONFIG": str(ROOT / source)}


def test_variables_ports_and_health_check_are_the_server_s(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, variables = FILE.stages["runtime"], image_variables()
    assert not unknown_variables(variables)
    for key, value in variables.items():
        if key.startswith("PROMPTMUX_"):
            monkeypatch.setenv(key, value)
    settings = Settings.load()
    assert [one.value for one in runtime.of("EXPOSE")] == [str(settings.port)]
    assert settings.admin_host == "127.0.0.1"  # who wants the admin port outside has to say so
    volumes = runtime.of("VOLUME")[0].words()
    assert any(settings.store.startswith(f"file://{volume}/") for volume in volumes)
    assert variables["HOME"] == variables["XDG_CACHE_HOME"] == runtime.of("WORKDIR")[0].value == "/cache"
    assert "/cache" in volumes
    (check,) = runtime.of("HEALTHCHECK")
    script = check.value.removeprefix("CMD ").split('"')[-2]
    assert [one.value.split()[0] for one in runtime.of("COPY") if one.value.endswith(f" {script}")] == [
        "docker/healthcheck.py"
    ]
    assert f'"{settings.port}"' in (ROOT / "docker/healthcheck.py").read_text("utf-8").replace("'", '"')


def test_labels_say_what_the_project_says() -> None:
    labels = FILE.stages["runtime"].of("LABEL")[0].pairs(FILE.arguments)
    project = PROJECT["project"]
    title = "org.opencontainers.image."
    assert labels[f"{title}version"] == project["version"]
    assert labels[f"{title}licenses"] == project["license"]
    assert labels[f"{title}description"] == project["description"]
    assert labels[f"{title}base.name"] == FILE.arguments["PYTHON_IMAGE"]
    for target in TARGETS:
        commands = [one.value for one in FILE.stages[target].of("RUN")]
        assert (
            sum(f"--output-file {labels['promptmux.sbom.cyclonedx']} " in command for command in commands)
            == 1
        )


def test_python_and_torch_are_of_a_version_that_the_project_takes() -> None:
    found = re.search(r"python:(\d+\.\d+)", FILE.arguments["PYTHON_IMAGE"])
    assert found
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(found[1])
    (torch,) = [one for one in map(Requirement, PROJECT["project"]["dependencies"]) if one.name == "torch"]
    assert torch.specifier.contains(FILE.arguments["TORCH_VERSION"])


def test_all_that_torch_needs_is_pinned() -> None:
    locked = pins("requirements.lock") | pins("docker/torch.lock")
    todo, seen = ["torch"], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for needed in map(Requirement, distribution(name).requires or ()):
            cuda = any(one.operator == "==" for one in needed.specifier)  # pinned by torch itself
            if not cuda and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                todo += {canonicalize_name(needed.name)} - seen
    assert seen - {"torch"} <= locked.keys()
    assert pins("docker/torch.lock").keys() <= seen


def test_the_cuda_build_s_libraries_are_pinned_and_nothing_is_twice() -> None:
    cuda = pins("docker/torch-cuda.lock")
    assert "triton" in cuda
    assert all(name == "triton" or name.startswith(("nvidia-", "cuda-")) for name in cuda)
    ours, torchs, trainer = (
        pins(name) for name in ("requirements.lock", "docker/torch.lock", "docker/trainer-only.lock")
    )
    # What torch needs and the trainer needs as well is in both, since a server's image goes without the trainer's.
    twice = ours.keys() & torchs.keys()
    assert twice <= trainer.keys()
    assert all(ours[name] == torchs[name] for name in twice)


def test_the_sbom_tool_is_pinned() -> None:
    assert "cyclonedx-bom" in pins("docker/sbom.lock")


def test_the_server_goes_without_what_the_trainer_alone_needs() -> None:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "scripts" / "lock.py")
    assert spec
    assert spec.loader
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    made = {line.partition("==")[0] for line in lock.lock_files()["docker/trainer-only.lock"]}
    left_out = pins("docker/trainer-only.lock")
    assert left_out.keys() == made
    assert left_out.items() <= pins("requirements.lock").items()
    assert {"datasets", "matplotlib", "scikit-learn"} <= made
    assert not made & {"numpy", "transformers", "rich", "uvicorn"}
