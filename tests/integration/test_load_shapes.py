"""Locust for true, in short: every shape against a server of its own, and servers whose faults must be found.

The default run takes the fake backbone. Nothing here says how fast anything must be: bounds are either far off, or such
that the fault breaks them on any machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loadtest import knee
from loadtest.ports import free_port
from loadtest.server_process import process
from tests.integration.conftest import ServerProcess
from tests.loadtest.slow_server import serving

ROOT = Path(__file__).resolve().parents[2]
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
FAR_OFF = ["--p99=30000", "--recover-p99=30000"]


def said(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PROMPTMUX_", "LOCUST_"))
    }
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env={**clean, **variables}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


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


def an_answer(task_id: str = "a") -> bytes:
    body = b'{"task_id": "%b", "data": [{}]}' % task_id.encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def soon() -> None:
    """Callers wait for their answers most of the time: what is asked for at full speed shows no more, and costs."""
    await asyncio.sleep(0.02)


async def fine(nth: int) -> bytes:
    await soon()
    return an_answer()


async def slow(nth: int) -> bytes:
    await asyncio.sleep(0.3)
    return an_answer()


async def failing(nth: int) -> bytes:
    await soon()
    return b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n" if nth % 20 == 7 else an_answer()


async def refusing(nth: int) -> bytes:
    await soon()
    return (
        b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
        if nth % 20 == 7
        else an_answer()
    )


async def hanging(nth: int) -> bytes:
    await (soon() if nth < 40 else asyncio.sleep(300))
    return an_answer()


async def another_tasks(nth: int) -> bytes:
    await soon()
    return an_answer("b")


# A request that is never answered fails sooner.
IMPATIENT = """
from loadtest.locustfile import Caller

Caller.network_timeout = 12.0
"""
FAULTS: dict[str, tuple[Callable[[int], Awaitable[bytes]], list[str], int, str]] = {
    "fine": (fine, ["--p99=10000"], 0, "ok     failures"),
    "slow": (slow, ["--p99=200"], 1, "FAILED p99"),
    "failing": (failing, ["--p99=10000"], 1, "FAILED failures"),
    "refusing": (refusing, ["--p99=10000"], 1, "FAILED refusals"),
    "refusing, and that is allowed": (
        refusing,
        ["--p99=10000", "--max-refused-share=0.5"],
        0,
        "ok     failures",
    ),
    "hangs after 40": (hanging, ["--p99=10000"], 1, "FAILED failures: 2 of"),
    "hangs, and is not waited for": (
        hanging,
        ["--p99=10000", "--stop-timeout=1"],
        1,
        "FAILED failures: 2 of",
    ),
    "hangs, by locust's own clock": (
        hanging,
        # Locust's clock began before its imports, which take their time where the machine has much to do.
        ["--p99=1000", "-t30s", "--stop-timeout=1", "--max-fail-share=1"],
        1,
        "FAILED longest time without an answer",
    ),
    "too few": (fine, ["--p99=10000", "--min-rate=100000"], 1, "FAILED answered a second"),
    "another task's answers": (another_tasks, ["--p99=10000"], 1, "FAILED answered requests"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    file = tmp_path_factory.mktemp("faults") / "locustfile.py"
    file.write_text(IMPATIENT)

    def one(name: str) -> subprocess.CompletedProcess[str]:
        answer, flags, _, _ = FAULTS[name]
        with serving(answer) as server:
            locust = ["locust", "-f", str(file), "--headless", "--only-summary", "-u2"]
            length = [] if "-t30s" in flags else ["--steady-seconds=5"]
            return said(
                [*locust, *length, "--host", server.url, "--task-ids=a", *flags], PYTHONPATH=str(ROOT)
            )

    with ThreadPoolExecutor(len(FAULTS)) as pool:
        return dict(zip(FAULTS, pool.map(one, FAULTS), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_the_bound_that_is_for_it(
    name: str, faulty: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    ended = faulty[name]
    _, _, code, wanted = FAULTS[name]
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert wanted in ended.stdout


def test_without_a_shape_locusts_own_flags_are_enough() -> None:
    with serving(fine) as server:
        locust = [
            "locust",
            "-f",
            "loadtest/locustfile.py",
            "--headless",
            "--only-summary",
            "-u2",
            "-r2",
            "-t20s",
        ]
        ended = said([*locust, "--host", server.url, "--task-ids=a", "--p99=30000"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counted = int(re.search(r"answered ([\d,]+), refused 0", ended.stdout)[1].replace(",", ""))  # type: ignore[index]
    assert f"load test: passed ({counted} requests)" in ended.stdout


STOPPED_BETWEEN_TWO = """
import gevent
from loadtest.locustfile import Caller

def stopped_while_it_waits(user):
    if user.environment.stats.total.num_requests == 20:
        gevent.spawn(user.stop)  # locust ends it at once, but it is woken first, and sends
        gevent.spawn_later(1, user.environment.runner.quit)
    return 0

Caller.wait_time = stopped_while_it_waits
"""


def test_a_request_that_locust_cut_off_as_it_began_is_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "locustfile.py"
    file.write_text(STOPPED_BETWEEN_TWO)
    with serving(fine) as server:
        locust = ["locust", "-f", str(file), "--headless", "--only-summary", "-u1", "-t120s"]
        ended = said([*locust, "--host", server.url, "--task-ids=a"], PYTHONPATH=str(ROOT))
    assert "ok     failures: 0 of 20 " in ended.stdout, ended.stdout + ended.stderr


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_shape_that_was_cut_short_does_not_pass() -> None:
    with serving(fine) as server:
        flags = [
            "--headless",
            "--only-summary",
            "--shape=ramp",
            "--host",
            server.url,
            "--task-ids=a",
            "--p99=30000",
        ]
        command = [sys.executable, "-u", "-m", "locust", "-f", "loadtest/locustfile.py", *flags]
        # Who runs the tests in the background of a shell has SIGINT ignored, and so would whatever is started here.
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
        ) as ended:
            assert ended.stdout
            while "1 at once" not in ended.stdout.readline():
                pass
            time.sleep(2)
            ended.send_signal(signal.SIGINT)  # SIGTERM ends locust at once while a shape runs
            last = ended.stdout.read()
    assert ended.returncode == 1
    assert "ended before its shape was over" in last


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


def test_a_server_that_dies_before_the_open_loop_leaves_what_locust_measured(tmp_path: Path) -> None:
    flags = [
        "--mix=zipf",
        "--users=2",
        "--steady-seconds=3",
        "--p99=30000",
        "--task-ids=a",
        f"--out={tmp_path}",
    ]
    with serving(fine, healthy=True) as server:
        command = [sys.executable, "-u", "-m", "loadtest.run", *flags, "--host", server.url]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as ended:
            assert ended.stdout
            said_first = ""
            while "open loop, " not in said_first:
                said_first = ended.stdout.readline()
                assert said_first, "it ended before its open loop"
            server.die()
            last = ended.stdout.read()
    assert ended.returncode == 1, last
    plain = json.loads((tmp_path / "load-steady-zipf.json").read_text())
    assert not plain["passed"]
    assert sum(row[2] for row in plain["runs"][0]["timeline"]) > 10
    assert "load-steady-zipf: FAILED" in last


def test_what_cannot_be_run_is_said() -> None:
    no_key = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    with serving(fine, get=lambda head: no_key) as server:
        locust = [
            "locust",
            "-f",
            "loadtest/locustfile.py",
            "--headless",
            "--host",
            server.url,
            "--task-ids=a",
        ]
        alone = said([*locust, "--shape=greedy"])
        nobody = said([*locust, "--shape=soak", "--memory-of=999999999"])
        blind = said([*locust, "--shape=soak"])
        asked = [*locust, "--shape=soak", f"--memory-of={server.url}/metrics"]
        locked_out = said(asked, PROMPTMUX_METRICS_KEY="wrong")
    assert locked_out.returncode == 2
    assert "a key of scope metrics, not the one in PROMPTMUX_METRICS_KEY" in locked_out.stderr
    assert blind.returncode == 2
    assert "--no-memory" in blind.stderr
    assert alone.returncode == 2
    assert "two tasks or more" in alone.stderr
    assert nobody.returncode == 2
    assert "--memory-of" in nobody.stderr


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
