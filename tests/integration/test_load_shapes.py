"""Locust for true, in short: every shape against a server of its own.

The default run takes the fake backbone. Nothing here says how fast anything must be: bounds are far off.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loadtest import knee
from loadtest.ports import free_port
from loadtest.server_process import process
from tests.integration.conftest import ServerProcess
from tests.integration.loads import FAR_OFF, ROOT, fine, said
from tests.loadtest.slow_server import serving

SHAPES = {
    "ramp": ["--ramp-to=4", "--phase-seconds=6", "--no-open-loop"],
    # That they come at once is held by tests/loadtest/test_planned.py.
    "spike": [
        "--phase-seconds=6",
        "--recover-within=6",
        "--spike-times=50",
        "--workers=2",
        "--no-open-loop",
    ],
    "soak": ["--soak-seconds=20", "--max-memory-growth=500", "--max-latency-growth=50", "--no-open-loop"],
    "greedy": ["--phase-seconds=6", "--greedy-times=4", "--max-slowdown=1000"],
}


def bereft_of(killed: int) -> tuple[int, str]:
    """A spike with two workers of which so many are killed when it begins: exit code and output."""
    locust = [sys.executable, "-u", "-m", "locust", "-f", "loadtest/locustfile.py"]
    port = str(free_port())
    flags = ["--headless", "--only-summary", "--loglevel=WARNING", "--master", "--master-bind-port", port]
    flags += ["--expect-workers=2", "--shape=spike", "-u2", "--phase-seconds=4", "--recover-within=3"]
    with serving(fine) as server, contextlib.ExitStack() as stack:
        flags += ["--host", server.url, "--task-ids=a", *FAR_OFF]
        workers = [
            stack.enter_context(process([*locust, "--worker", "--master-port", port])) for _ in range(2)
        ]
        with subprocess.Popen([*locust, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True) as master:
            assert master.stdout
            lines = []
            for line in master.stdout:
                lines.append(line)
                if "load test: spike" in line:
                    for worker in workers[:killed]:
                        worker.popen.kill()
        return master.returncode, "".join(lines)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[int, tuple[int, str]]]:
    """Every shape, and what lost its workers, all at the same time: they wait more than they work."""
    folder = tmp_path_factory.mktemp("loads")

    def one(shape: str) -> subprocess.CompletedProcess[str]:
        own = ["--backbone=fake", "--tasks=5", "--kind=soft", "--users=2", f"--out={folder}"]
        return said(["loadtest.run", "--shape", shape, *own, *FAR_OFF, *SHAPES[shape]])

    with ThreadPoolExecutor(len(SHAPES) + 2) as pool:
        lost = {killed: pool.submit(bereft_of, killed) for killed in (1, 2)}
        done = dict(zip(SHAPES, pool.map(one, SHAPES), strict=True))
    shapes = {shape: (ended, folder / f"load-{shape}-zipf") for shape, ended in done.items()}
    return shapes, {killed: future.result() for killed, future in lost.items()}


@pytest.fixture(scope="module")
def runs(at_once: tuple[dict[str, Any], Any]) -> dict[str, tuple[subprocess.CompletedProcess[str], Path]]:
    return at_once[0]


@pytest.fixture(scope="module")
def bereft(at_once: tuple[Any, dict[int, tuple[int, str]]]) -> dict[int, tuple[int, str]]:
    return at_once[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_runs_and_leaves_its_reports(shape: str, runs: dict[str, Any]) -> None:
    ended, prefix = runs[shape]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for suffix in (".md", ".png", ".html", "_stats.csv", "_stats_history.csv"):
        assert Path(f"{prefix}{suffix}").stat().st_size > 100, suffix
    plain = json.loads(Path(f"{prefix}.json").read_text())
    assert plain["passed"]
    closed = plain["runs"][0]
    assert closed["loop"] == "closed"
    for phase in closed["phases"]:
        assert int(phase["answered"].replace(",", "")) > 0, phase
        assert phase["failed"] == "0"
    assert all(check["passed"] for check in closed["checks"])
    # What the shape counted is what locust counted.
    ours = sum(row[2] + row[3] + row[4] for row in closed["timeline"])
    assert f"load test: passed ({ours} requests)" in ended.stdout


def test_a_ramp_has_a_step_for_each_doubling(runs: dict[str, Any]) -> None:
    plain = json.loads(Path(f"{runs['ramp'][1]}.json").read_text())
    assert [phase["users"] for phase in plain["runs"][0]["phases"]] == ["1", "2", "4"]
    assert plain["runs"][0]["remarks"]


def test_workers_share_a_spike(runs: dict[str, Any]) -> None:
    ended, prefix = runs["spike"]
    assert "on 2 workers" in ended.stdout
    plain = json.loads(Path(f"{prefix}.json").read_text())
    assert [phase["users"] for phase in plain["runs"][0]["phases"]] == ["2", "100", "2"]


def test_a_soak_looks_at_the_servers_memory(runs: dict[str, Any]) -> None:
    plain = json.loads(Path(f"{runs['soak'][1]}.json").read_text())
    assert all(size > 10**6 for _, size in plain["runs"][0]["memory"])
    assert any("MiB an hour" in remark for remark in plain["runs"][0]["remarks"])


def test_a_greedy_task_is_told_from_the_others_in_both_loops(runs: dict[str, Any]) -> None:
    closed, opened = json.loads(Path(f"{runs['greedy'][1]}.json").read_text())["runs"]
    assert [phase["who"] for phase in closed["phases"]] == ["others", "others", "greedy"]
    sent = {
        group: sum(row[2] for row in opened["timeline"] if row[1] == group) for group in ("others", "greedy")
    }
    seconds = opened["stretches"][1]["offered"] / opened["stretches"][0]["offered"]
    assert seconds == pytest.approx(5.0)  # 1 + 4: by construction, whatever the server does
    assert sent["greedy"] > sent["others"]


def test_a_lost_worker_fails_the_load(bereft: dict[int, tuple[int, str]]) -> None:
    code, output = bereft[1]
    assert code == 1
    assert "FAILED the load: 1 of 2 workers went missing:" in output
    assert "load test: FAILED (" in output


def test_without_workers_it_ends_and_says_why(bereft: dict[int, tuple[int, str]]) -> None:
    code, output = bereft[2]
    assert code == 1
    assert "FAILED the load: 2 of 2 workers went missing, the last one too:" in output
    assert "ended before its shape was over" in output


def test_the_knees_command_against_a_server_that_runs(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--host",
        server.url,
        "--task-ids=sentiment",
        "--p99=30000",
        "--first=20",
        "--most=40",
        "--factor=2",
    ]
    flags += ["--repeats=1", "--seconds=1", "--longest=1", "--goodput=0.1"]
    kept = [f"--json={tmp_path / 'knee.json'}", f"--picture={tmp_path / 'knee.png'}"]
    for _ in range(5):  # on a machine that stands still the generator or the server is late
        code = knee.main([*flags, *kept])
        plain = json.loads((tmp_path / "knee.json").read_text())
        if code == 0 and plain["knee_per_second"] == 40.0:
            break
    assert code == 0
    assert (plain["knee_per_second"], plain["beyond_per_second"]) == (40.0, None)
    assert plain["levels"][0]["trials"][0]["failed"] == 0
    assert (tmp_path / "knee.png").stat().st_size > 1000
    assert "ask for more" in capsys.readouterr().out
    assert knee.main(["--host", "http://127.0.0.1:9", "--task-ids=x"]) == 2
    with pytest.raises(SystemExit):
        knee.main(["--host", server.url])
