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

import yaml

from loadtest import knee, run
from tests.integration.test_load_shapes import ROOT, fine, said
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
    with serving(fine) as server:
        ended = subprocess.run(
            [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", *flags, *short, "--host", server.url],
            cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "load test: passed" in ended.stdout


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
