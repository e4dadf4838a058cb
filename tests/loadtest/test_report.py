from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.bench.report import Ratio, Section, Table, markdown, show, write

SECTION = Section(
    "forward",
    [Table("rates", ("side", "rows/s"), [("a|b", "1"), ("[c]", "2")], note="two sides")],
    [Ratio("a / b", 0.5, 1.0, 2.0), Ratio("c / d", None, 1.0, None, note="c would not start")],
    {"seconds": {"a": [1.0]}},
    [Path("somewhere/picture.png")],
    {"peer: library": "1.2"},
)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio("", 2.0, 1.0, 2.0), "aim"),
        (Ratio("", 1.5, 1.0, 2.0), "met"),
        (Ratio("", 0.9, 1.0, 2.0), "missed"),
        (Ratio("", 1.5, 4.0, 2.5, at_most=True), "aim"),
        (Ratio("", 3.0, 4.0, 2.5, at_most=True), "met"),
        (Ratio("", 5.0, 4.0, 2.5, at_most=True), "missed"),
        (Ratio("", None, 1.0, 2.0), "not measured"),
        (Ratio("", 1.0, None, None), ""),
        (Ratio("", 1.0, None, 2.0), "short of the aim"),
    ],
)
def test_a_verdict_says_how_a_ratio_stands_to_its_targets(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict == verdict


def test_a_ratio_shows_its_direction_and_unit() -> None:
    assert Ratio("start", 6.2, 8, 5, at_most=True, unit="s").cells() == (
        "start", "6.200 s", "≤ 8 s", "≤ 5 s", "met", "",
    )  # fmt: skip
    assert Ratio("rate", 1234.4, None, None).cells()[1:4] == ("1,234", "–", "–")


def test_the_console_shows_everything_as_it_is(console: Console) -> None:
    show(SECTION, console)
    show(Section("http", error="no [server]"), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "rates",
        "a|b",
        "[c]",
        "two sides",
        "missed",
        "not measured",
        "c would not start",
        "no [server]",
    ):
        assert part in shown


def test_markdown_keeps_its_columns() -> None:
    page = markdown([SECTION], {"cpu": "one", "versions": {"torch": "2"}})
    assert "| a\\|b | 1 |" in page
    assert "| side | rows/s |\n| --- | ---: |" in page
    assert "![picture](picture.png)" in page
    assert "torch 2" in page


def test_the_json_has_everything(tmp_path: Path) -> None:
    file, page = write(tmp_path / "new", "bench", [SECTION], {"versions": {"torch": "2"}}, {"rounds": 5})
    whole = json.loads(file.read_text())
    assert whole["machine"]["versions"] == {"torch": "2", "peer: library": "1.2"}
    assert whole["options"] == {"rounds": 5}
    forward = whole["sections"]["forward"]
    assert forward["raw"] == SECTION.raw
    assert [ratio["verdict"] for ratio in forward["ratios"]] == ["missed", "not measured"]
    assert "peer: library 1.2" in page.read_text()
