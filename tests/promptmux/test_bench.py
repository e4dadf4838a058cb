from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from promptmux.__main__ import build
from promptmux.commands import bench


def test_the_bench_is_run_from_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # from anywhere
    asked: list[list[str]] = []

    def instead(command: list[str], **_: object) -> object:
        asked.append(command)
        return type("Ended", (), {"returncode": 3})

    monkeypatch.setattr(bench.subprocess, "run", instead)
    result = CliRunner().invoke(build(), ["bench", "--quick", "--only", "roofline"])
    assert result.exit_code == 3
    assert asked == [[sys.executable, "-P", "-m", "loadtest.bench", "--quick", "--only", "roofline"]]


@pytest.mark.parametrize("missing", ["checkout", "requirements"])
def test_what_is_missing_is_said(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if missing == "checkout":
        monkeypatch.setattr(bench, "_ROOT", tmp_path)
    else:
        monkeypatch.setattr(bench.importlib.util, "find_spec", lambda _: None)
    result = CliRunner().invoke(build(), ["bench"])
    assert result.exit_code == 2
    assert "make bench" in result.output
