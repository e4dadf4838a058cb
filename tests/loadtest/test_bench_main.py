"""The command: options, sections that fail, files that are written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.bench.__main__ import main, parse
from loadtest.bench.options import PEERS, SECTIONS, Options
from loadtest.bench.report import Section


def test_without_arguments_everything_is_measured() -> None:
    assert parse([]) == Options()
    assert Options().only == SECTIONS
    assert parse(["--quick"]).rows < Options().rows


def test_sections_and_peers_keep_their_order() -> None:
    options = parse(
        ["--only", "forward, roofline", "--peers", "peft,huggingface", "--modes", "eager,compiled"]
    )
    assert options.only == ("roofline", "forward")
    assert options.peers == ("huggingface", "peft")
    assert options.modes == ("eager", "compiled")
    assert parse(["--peers", "none"]).peers == ()
    assert parse(["--peers", "all"]).peers == PEERS


@pytest.mark.parametrize(
    "arguments",
    [["--only", "speed"], ["--peers", "rival"], ["--rounds", "0"], ["--rows", "0"], ["--batch", "x"]],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_section_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Section:
        raise RuntimeError("no port is free")

    def fine(*_: Any) -> Section:
        return Section("memory", raw={"bytes": 7})

    monkeypatch.setitem(sys.modules, "loadtest.bench.latency", SimpleNamespace(measure=broken))  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "loadtest.bench.memory", SimpleNamespace(measure=fine))  # type: ignore[misc]
    assert main(["--only", "memory,latency", "--out", str(tmp_path)]) == 1
    assert "no port is free" in capsys.readouterr().out
    # A run of some sections does not write over a whole run.
    whole = json.loads((tmp_path / "bench-latency-memory.json").read_text())
    assert "no port is free" in whole["sections"]["latency"]["error"]
    assert whole["sections"]["memory"]["raw"] == {"bytes": 7}
    assert whole["machine"]["versions"]["torch"]
    assert main(["--only", "memory", "--out", str(tmp_path)]) == 0
