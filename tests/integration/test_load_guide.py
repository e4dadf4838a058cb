"""The guide to load testing and the files for a cluster: what they name exists, and is enough."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from loadtest import knee, run
from tests.deploy.manifests import (
    containers,
    named,
    of_kind,
    pod_templates,
    render,
    render_with,
    rendered,
    server,
)
from tests.deploy.reachable import Pod, may_reach
from tests.deploy.restricted import loose_ends
from tests.deploy.schemas import faults, versions
from tests.integration.loads import ROOT, fine, said
from tests.loadtest.slow_server import serving


def test_a_cluster_gets_every_file_that_locust_needs(tmp_path: Path) -> None:
    """The files of the config map, alone in a folder: locust starts with them, sends, and judges."""
    written = yaml.safe_load((ROOT / "loadtest" / "kustomization.yaml").read_text())
    folder = tmp_path / "loadtest"
    folder.mkdir()
    for name in written["configMapGenerator"][0]["files"]:
        shutil.copy(ROOT / "loadtest" / name, folder)
    jobs = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]
        for one in yaml.safe_load_all((ROOT / "loadtest" / "locust-jobs.yaml").read_text())
        if one["kind"] == "Job"
    }
    version = jobs["promptmux-locust-master"]["image"].partition(":")[2]
    assert version == importlib.metadata.version("locust")
    flags = [
        flag
        for flag in jobs["promptmux-locust-master"]["args"]
        if flag.partition("=")[0] not in _OF_THE_CLUSTER
    ]
    short = ["--shape=ramp", "--ramp-to=1", "--phase-seconds=3", "--p99=30000", "--task-ids=a"]
    with serving(fine) as here:
        ended = subprocess.run(
            [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", *flags, *short, "--host", here.url],
            cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "load test: passed" in ended.stdout


def test_in_a_cluster_the_server_is_reached_by_name_and_by_its_policies(tmp_path: Path) -> None:
    """Its workers reach the master, too: no policy is in their own namespace."""
    ours = render(ROOT / "loadtest")
    for version in versions():
        assert [fault for one in ours for fault in faults(one, version)] == []
    # Locust's image has a user of its own, 1000.
    loose = {fault for _, template in pod_templates(ours) for fault in loose_ends(template)}
    assert loose <= {"user, group and volumes' group are not all 10001"}
    space = named(ours, "Namespace", "promptmux-loadtest")["metadata"]
    assert {one["metadata"].get("namespace") for one in ours if one["kind"] != "Namespace"} == {space["name"]}
    assert of_kind(ours, "NetworkPolicy") == []
    (master,) = containers(named(ours, "Job", "promptmux-locust-master")["spec"]["template"])
    (host,) = (flag.partition("=")[2] for flag in master["args"] if flag.startswith("--host="))
    service, there = (urlsplit(host).hostname or "").split(".")
    for fleet in (rendered("overlays/cpu"), render_with(tmp_path, "overlays/cpu", ["gateway-only"])):
        found = named(fleet, "Service", service)
        assert found["metadata"]["namespace"] == there != space["name"]
        assert urlsplit(host).port in [one["port"] for one in found["spec"]["ports"]]
        source = Pod(namespace=space["name"], namespace_labels=space["labels"])
        assert may_reach(fleet, source, server(fleet)["metadata"]["labels"], 8000)


@pytest.mark.parametrize(("ended", "code"), [("Complete", 0), ("FailureTarget Failed", 1)])
def test_the_guides_wait_for_the_job_ends_however_that_ended(ended: str, code: int, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guides" / "load-testing.md").read_text()
    (block,) = (one for one in re.findall(r"```sh[^\n]*\n(.*?)```", page, re.S) if "apply -k loadtest" in one)
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"""#!/bin/sh
case "$*" in
  *" get job "*) test -e {tmp_path}/asked && echo {ended}; touch {tmp_path}/asked ;;
  *" wait "*--timeout=1s*) exit {code} ;;
  *" wait "*) sleep 900 ;;
  *" logs "*) echo "load test: FAILED x" ;;
esac
""")
    kubectl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", block], env={"PATH": path}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == code
    assert "load test: FAILED x" in done.stdout


_OF_THE_CLUSTER = ("--locustfile", "--host", "--master", "--expect-workers", "--expect-workers-max-wait")


def test_the_guides_commands_are_ones_that_exist() -> None:
    """Their flags are read by the parsers they are for; that they run is tested above, in short."""
    page = (ROOT / "docs" / "guides" / "load-testing.md").read_text().replace("\\\n", " ")
    found = {"loadtest.run": 0, "loadtest.knee": 0}
    for module, flags in re.findall(r"^python -m (loadtest\.\w+) ?([^#\n]*)", page, re.M):
        found[module] += 1
        parser = knee.parser() if module == "loadtest.knee" else run.parsers()[0]
        parser.parse_args(shlex.split(flags))
    assert found["loadtest.run"] >= 6
    assert found["loadtest.knee"] == 2
    for flags in re.findall(r"^locust -f loadtest/locustfile.py ([^\n]*)", page, re.M):
        # Locust reads every flag, ours as well, before it shows this and ends.
        shown = said(["locust", "-f", "loadtest/locustfile.py", *shlex.split(flags), "--show-task-ratio"])
        assert shown.returncode == 0, shown.stderr
