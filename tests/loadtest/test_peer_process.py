from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.bench import peer_process
from loadtest.bench.peer_process import PeerUnavailable, Worker, environment

SPEAKS = """
import sys
from loadtest.bench.peers import worker
out = worker.answers()
print("a library that talks")
def double(number): return {"twice": 2 * number}
def die(): sys.exit(3)
worker.serve(out, {"python": "3"}, {"double": double, "die": die})
"""
ECHO_BADLY = "print('{\"ready\": {}}', flush=True); input(); print('no json', flush=True); input()"
SILENT = "import time; time.sleep(60)"


def worker(code: str, patience: float = 60.0) -> Worker:
    return Worker([sys.executable, "-c", code], name="fake", patience=patience)


def test_a_worker_answers_and_says_what_went_wrong() -> None:
    with worker(SPEAKS) as fake:
        assert fake.versions == {"python": "3"}
        assert fake.ask("double", number=4) == {"twice": 8}
        with pytest.raises(PeerUnavailable, match="TypeError"):
            fake.ask("double", number=None)
        assert fake.ask("double", number="ab") == {"twice": "abab"}  # it goes on
        with pytest.raises(PeerUnavailable, match="exit code 3"):
            fake.ask("die")
        with pytest.raises(PeerUnavailable, match="fake"):
            fake.ask("double", number=1)
        process = fake._process
    assert process.poll() is not None


def test_a_worker_that_cannot_start_says_its_last_words() -> None:
    with pytest.raises(PeerUnavailable, match="No module named 'absent_library'"):
        worker("import absent_library")


def test_a_worker_that_does_not_answer_is_given_up() -> None:
    with pytest.raises(PeerUnavailable, match="not answered"):
        worker(SILENT, patience=0.2)


def test_what_is_no_json_is_no_answer() -> None:
    with worker(ECHO_BADLY) as fake, pytest.raises(PeerUnavailable, match="no JSON"):
        fake.ask("run")


def test_an_environment_is_made_once_and_a_failure_is_loud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.setattr(peer_process, "ENVIRONMENTS", tmp_path / "made")
    monkeypatch.setattr(peer_process, "REQUIREMENTS", tmp_path)
    pins = tmp_path / "fake.txt"
    pins.write_text(f"{tmp_path}/absent.whl\n")
    with pytest.raises(PeerUnavailable, match="cannot be installed"):
        environment("fake", console)
    assert "absent.whl" in (tmp_path / "made" / "fake" / "install.log").read_text()
    pins.write_text("# nothing\n")
    python = environment("fake", console)
    with Worker([str(python), "-c", SPEAKS], name="fake") as fake:
        assert fake.ask("double", number=1) == {"twice": 2}
    (tmp_path / "made" / "fake" / "kept").touch()
    assert environment("fake", console) == python
    assert (tmp_path / "made" / "fake" / "kept").exists()
    assert environment("without-pins", console) == Path(sys.executable)
