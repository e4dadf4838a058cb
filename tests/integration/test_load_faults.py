"""Servers whose faults a load must find, and what a load does not take for one.

Nothing here says how fast anything must be: bounds are such that the fault breaks them on any machine.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.loads import ROOT, an_answer, fine, said, soon
from tests.loadtest.slow_server import serving


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
