"""Two processes never train in one folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import RunFolderError
from trainer.checkpoints import Checkpoints
from trainer.lock import lock_folder

HOLD = """
import sys
from pathlib import Path
from trainer.lock import lock_folder

lock = lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that trains in a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run" / "state")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_the_second_process_is_refused_until_the_first_is_dead(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    state = tmp_path / "run" / "state"
    try:
        with pytest.raises(RunFolderError, match=rf"run: process {other.pid} on .* trains in it now; wait"):
            Checkpoints(state)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    first = Checkpoints(state)
    Checkpoints(state)  # the same process, as when a notebook resumes what it interrupted
    del first
    assert (state / "lock").read_text().startswith(f"process {os.getpid()} ")


def test_a_folder_that_is_not_made_yet_is_locked_when_it_is(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "state")
    assert not (tmp_path / "run").exists()
    checkpoints.save([])
    assert (tmp_path / "run" / "state" / "lock").exists()


def test_where_there_are_no_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    lock_folder(tmp_path / "state")
    assert (
        "no lock to be had (No locks available); see to it that no other process" in capsys.readouterr().err
    )
