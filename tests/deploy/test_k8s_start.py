"""The pod's own settings, files and commands start a real server and a training; unfilled secrets start nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from promptmux.__main__ import build
from tests.deploy.manifests import K8S, named, rendered, server, variables
from tests.integration.conftest import ServerProcess
from tests.server.fakes import prompt_bytes
from trainer import load_config
from trainer.data import load_examples


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The pod's variables, with its volumes in `tmp_path`. Still to all the world, as in the pod."""
    volumes = tmp_path / "volumes"
    given = variables(rendered("overlays/cpu"))
    for mount in server(rendered("overlays/cpu"))["spec"]["containers"][0]["volumeMounts"]:
        folder = volumes / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o2777)
        given = {
            name: value.replace(mount["mountPath"], str(folder))
            if value.startswith(mount["mountPath"])
            else value
            for name, value in given.items()
        }
    shutil.copy(K8S / "secrets" / "api-keys", given["PROMPTMUX_API_KEYS_FILE"])
    return given | {"PROMPTMUX_STORE": f"file://{tmp_path / 'store'}"}


@pytest.fixture
def started() -> Iterator[list[ServerProcess]]:
    servers: list[ServerProcess] = []
    yield servers
    for one in servers:
        one.stop()


def test_without_keys_the_pod_does_not_listen(
    environment: dict[str, str], started: list[ServerProcess]
) -> None:
    started.append(ServerProcess(**environment))
    assert started[0].exit_code() == 2
    assert "give api_keys first" in "\n".join(started[0].stderr)


def test_the_pods_settings_serve(
    environment: dict[str, str], started: list[ServerProcess], tmp_path: Path
) -> None:
    keys = environment["PROMPTMUX_API_KEYS_FILE"]
    tokens = {
        scope: CliRunner().invoke(build(), ["key", scope, "--scope", scope, "--file", keys]).stdout.strip()
        for scope in ("infer", "admin")
    }
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    (seeds / "sentiment.safetensors").write_bytes(prompt_bytes())
    loopback = {
        "PROMPTMUX_HOST": "127.0.0.1", "PROMPTMUX_PORT": "0", "PROMPTMUX_ADMIN_HOST": "127.0.0.1",
        "PROMPTMUX_ADMIN_PORT": "0", "PROMPTMUX_SEED_DIR": str(seeds),
    }  # fmt: skip
    started.append(ServerProcess(**environment | loopback).ready())
    one = started[0]
    (container,) = server(rendered("overlays/cpu"))["spec"]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert (
            httpx.get(one.url + container[probe]["httpGet"]["path"]).status_code == 200
        )  # a kubelet has no key
    body = {"task_id": "sentiment", "input": "a text"}

    def classify(key: str | None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{one.url}/classify", json=body, headers=headers).status_code

    assert (classify(None), classify(tokens["infer"])) == (401, 200)
    assert httpx.get(f"{one.admin_url}/metrics").status_code == 401
    assert httpx.get(f"{one.admin_url}/admin/tasks").status_code == 401
    assert one.events("unknown_variables") == []
    cache = Path(environment["PROMPTMUX_CACHE_DIR"])
    assert list(cache.rglob("*")), "the cache folder below the volume's root is not used"
    one.process.terminate()
    one.wait_for(lambda: httpx.get(f"{one.url}/readyz").status_code == 503)
    assert classify(tokens["infer"]) == 200  # it leaves, and answers on
    one.process.terminate()  # no need to wait for the rest of leave_delay
    assert one.exit_code() == 0


def train_script(folder: Path, run: Path, **variables: str) -> str:
    """What train.sh of the nightly training says, with a promptmux that says how it was called."""
    (folder / "promptmux").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "promptmux").chmod(0o755)
    script = named(rendered("train/nightly"), "ConfigMap", "promptmux-train-script")["data"]["train.sh"]
    (folder / "train.sh").write_text(script)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "PROMPTMUX_ADMIN_URL": "http://admin:1"}
    return subprocess.run(
        ["sh", folder / "train.sh", "CONFIG", run, "candidate"],
        env=environment | variables, capture_output=True, text=True, timeout=600, check=True,
    ).stdout.strip()  # fmt: skip


@pytest.mark.parametrize("begun", [False, True])
def test_the_nightly_training_keeps_its_last_runs(begun: bool, tmp_path: Path) -> None:
    job = named(rendered("train/nightly"), "CronJob", "promptmux-train-nightly")["spec"]["jobTemplate"][
        "spec"
    ]
    (container,) = job["template"]["spec"]["containers"]
    (keep,) = (int(one["value"]) for one in container["env"] if one["name"] == "KEEP_RUNS")
    assert container["args"][1].startswith("/runs/$(")
    runs = tmp_path / "runs"
    others = [runs / f"{night:02}" for night in range(keep + 5)]
    for night, run in enumerate(others):
        run.mkdir(parents=True)
        for name in ("config.toml", "metrics.json"):
            (run / name).touch()
            os.utime(run / name, (night, night))
    (runs / "lost+found").mkdir()  # of the volume, no run
    tonight = runs / "tonight"
    if begun:  # its pod was lost, and the clock of the next one's node is behind
        tonight.mkdir()
        (tonight / "config.toml").touch()
        os.utime(tonight / "config.toml", (0, 0))
    said = train_script(tmp_path, tonight, KEEP_RUNS=str(keep)).splitlines()
    kept = {runs / "lost+found", *others[-(keep - 1) :], *([tonight] if begun else [])}
    assert set(runs.iterdir()) == kept
    assert len(said) == len(others) - (keep - 1) + 1  # each that is removed is named
    assert said[-1].startswith("train ")


@pytest.mark.parametrize(
    ("there", "called"),
    [
        ((), "train CONFIG --output RUN --publish http://admin:1 --alias candidate"),
        (("config.toml",), "train --resume RUN --publish http://admin:1 --alias candidate"),
        (
            ("config.toml", "metrics.json"),
            "publish RUN/prompt.safetensors --server http://admin:1 --alias candidate",
        ),
    ],
)
def test_a_training_goes_on_where_it_was(there: tuple[str, ...], called: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in there:
        (run / name).touch()
    done = train_script(tmp_path, run)
    assert done == called.replace("RUN", str(run))
    command, *given = done.split()
    helped = CliRunner(env={"COLUMNS": "200"}).invoke(build(), [command, "--help"]).stdout
    for flag in (one for one in given if one.startswith("--")):
        assert flag in helped


@pytest.mark.parametrize(
    ("training", "config", "files"),
    [("once", "train.toml", "promptmux-training"), ("many", "0.toml", "promptmux-trainings"),
     ("many", "1.toml", "promptmux-trainings")],
)  # fmt: skip
def test_the_examples_can_be_learned_from(training: str, config: str, files: str, tmp_path: Path) -> None:
    for name, text in named(rendered(f"train/{training}"), "ConfigMap", files)["data"].items():
        (tmp_path / name).write_text(text)
    examples = load_examples(load_config(tmp_path / config))
    assert examples.digests()


def test_a_store_and_keys_never_stand_in_a_flag() -> None:
    (container,) = server(rendered("overlays/cpu"))["spec"]["containers"]
    assert container["command"] == ["promptmux", "serve"]
    assert "args" not in container
