"""What a load is sent to: keys that stay secret, and what is refused before anything is sent."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from loadtest import knee, run
from loadtest.memory_watch import resident_bytes
from loadtest.target import shown_command
from tests.loadtest.slow_server import ANSWER, serving


@pytest.mark.parametrize("given", [["--key", "s3cret"], ["--key=s3cret"], ["--metrics-key", "s3cret"],
                                   ["--server-flags=--store redis://me:s3cret@h/0"]])  # fmt: skip
def test_a_reports_command_has_no_key(given: list[str]) -> None:
    shown = shown_command("loadtest.run", ["--users", "2", *given, "--mix=zipf"])
    assert "s3cret" not in shown
    assert shown.startswith("python -m loadtest.run --users 2 ")
    assert shown.endswith(" --mix=zipf")


async def at_once(nth: int) -> bytes:
    return ANSWER


def test_the_knees_page_has_no_key(tmp_path: Path) -> None:
    """And no abbreviation of a flag, by which one would be there after all."""
    with serving(at_once, healthy=True) as server:
        flags = [
            "--host",
            server.url,
            "--task-ids=a",
            "--p99=30000",
            "--first=20",
            "--most=20",
            "--key=s3cret",
        ]
        kept = [f"--json={tmp_path / 'knee.json'}", f"--picture={tmp_path / 'knee.png'}"]
        assert knee.main([*flags, *kept, "--repeats=1", "--seconds=1", "--longest=1"]) == 0
        with pytest.raises(SystemExit):
            knee.main([*flags[:-1], "--ke=s3cret"])
    assert b"Bearer s3cret" in server.heads[0]
    assert "s3cret" not in (tmp_path / "knee.json").read_text()


@pytest.mark.parametrize("main", [knee.main, run.main])
def test_https_is_refused_before_a_key_is_sent(main: object, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(at_once, healthy=True) as server:
        with pytest.raises(SystemExit) as ended:
            main(["--host", server.url.replace("http", "https"), "--task-ids=a", "--key=s3cret"])  # type: ignore[operator]
        assert server.connections == 0
    assert ended.value.code == 2
    assert "speaks http:// only" in capsys.readouterr().err


def test_locust_gets_keys_that_no_list_of_processes_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[list[str], dict[str, str]]] = []

    def locust(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        found.append((command, env))
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(run.subprocess, "run", locust)
    with serving(at_once, get=metrics_with_a_key) as server:
        flags = ["--shape=soak", f"--host={server.url}", "--task-ids=a", f"--metrics={server.url}/metrics"]
        assert run.main([*flags, "--key", "s3cret", "--metrics-key=right", f"--out={tmp_path}"]) == 2
    ((command, env),) = found
    assert not [word for word in command if "s3cret" in word or "right" in word]
    assert (env["PROMPTMUX_KEY"], env["PROMPTMUX_METRICS_KEY"]) == ("s3cret", "right")


METRICS = b"process_resident_memory_bytes 4.2e+07\n"


def with_a_key(head: bytes) -> bytes:
    if b"Authorization: Bearer right" not in head:
        return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(METRICS), METRICS)


def metrics_with_a_key(head: bytes) -> bytes:
    return with_a_key(head) if head.startswith(b"GET /metrics") else ANSWER


def test_metrics_are_asked_with_their_key() -> None:
    with serving(at_once, get=with_a_key) as server:
        assert resident_bytes(server.url, "right") == 42_000_000
        with pytest.raises(ValueError, match="not the one in PROMPTMUX_METRICS_KEY"):
            resident_bytes(server.url, "wrong")
        with pytest.raises(ValueError, match="PROMPTMUX_METRICS_KEY has none"):
            resident_bytes(server.url)


def test_a_wrong_key_for_metrics_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(at_once, get=metrics_with_a_key) as server:
        flags = ["--shape=soak", "--host", server.url, "--task-ids=a", "--metrics", f"{server.url}/metrics"]
        assert run.main([*flags, "--metrics-key=wrong"]) == 2
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert "wants a key of scope metrics" in line
