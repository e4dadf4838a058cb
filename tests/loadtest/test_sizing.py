"""The sizing command: it runs, and its estimate is the formulas of docs/sizing.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest import sizing, sizing_measure

FIGURES: dict[str, Any] = {
    "machine": {"date": "today", "commit": "abc", "cores": 2, "cpu": "some", "load_average": 0.1},
    "dtype": "float32",
    "tasks": 3,
    "a_task": {kind: {"file": 1000.0 * at, "device": 2000.0 * at} for at, kind in enumerate(sizing.KINDS, 1)},
    "places": {
        "host memory: a task that is not loaded": 10.0,
        "snapshot in cache_dir": 7.0,
        "redis, beside the file's bytes": 5.0,
        "a server with one task, nothing loaded": 1e6,
    },
    "forward_ms": [
        {"kind": kind, "tokens": tokens, "batch": batch, "ms": tokens * (2 if batch == 1 else 1)}
        for kind in sizing.KINDS
        for tokens in (8, 128)
        for batch in (1, 16)
    ],
    "request_ms": {"1": 60.0, "16": 30.0},
    "http_ms": {"1": 5.0, "16": 3.0},
}


def test_an_estimate_is_the_formulas() -> None:
    needs = sizing.estimate(FIGURES, tasks=100, rate=70, kind="soft", tokens=57)
    assert needs == {
        "server: memory with no prompt loaded": 1e6 + 1000,
        "server: device memory for all prompts": 100 * 4000,
        "server: disk for cache_dir": 100 * (2000 + 7),
        "redis: memory": 100 * (2000 + 5),
        # HTTP adds 3 ms to a forward of 57 ms: 60 ms a request, 70 of them a second, 0.7 of the cores used.
        "cores, of all servers": pytest.approx(6.0),
    }


def test_it_estimates_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "figures.json").write_text(json.dumps(FIGURES))
    sizing.main(
        [
            "estimate",
            "--tasks",
            "1",
            "--rate",
            "70",
            "--tokens",
            "57",
            "--figures",
            str(tmp_path / "figures.json"),
        ]
    )
    assert "cores, of all servers" in capsys.readouterr().out


def test_every_figure_is_shown() -> None:
    page = sizing.shown(FIGURES)
    assert "| soft | 16 | 8.00 | 128.00 |" in page
    assert "| 16 | 30.00 | 3.00 |" in page
    assert "200 × 30.00 / 1000 / 0.7 = 8.57 cores" in page  # 27 + 3 ms


@pytest.mark.parametrize(("http", "said"), [({"16": 0.0}, "HTTP takes 0.00 ms"), (None, "http_ms")])
def test_figures_that_cannot_be_are_refused(http: dict[str, float] | None, said: str, tmp_path: Path) -> None:
    wrong = {name: value for name, value in FIGURES.items() if name != "http_ms"}
    (tmp_path / "figures.json").write_text(json.dumps({**wrong, "http_ms": http} if http else wrong))
    with pytest.raises(SystemExit, match=said):
        sizing.main(["estimate", "--tasks=1", "--rate=70", f"--figures={tmp_path / 'figures.json'}"])


def test_the_page_shows_the_kept_figures_and_no_others() -> None:
    page = sizing.PAGE.read_text(encoding="utf-8")
    shown = page.split(sizing.BEGIN)[1].split(sizing.END)[0].strip()
    assert shown == sizing.shown(json.loads(sizing.KEPT.read_text(encoding="utf-8")))
    assert page.count("So 200 requests") == 1


@pytest.mark.slow
def test_it_measures() -> None:
    found = sizing_measure.measure(40, quick=True)
    assert set(found) == set(FIGURES)
    assert set(found["places"]) >= set(FIGURES["places"])
    assert found["a_task"]["prefix"]["device"] > found["a_task"]["bare"]["device"] > 0
    assert all(one["ms"] > 0 for one in found["forward_ms"])
    assert all(0 < ms < found["request_ms"][connections] for connections, ms in found["http_ms"].items())
    assert all(
        size > 0 for name, size in found["places"].items() if name != "host memory: a task that is not loaded"
    )
