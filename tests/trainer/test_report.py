from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.errors import RunFolderError
from trainer.report import (
    Point,
    TableRow,
    many_table,
    mean_and_spread,
    percent,
    plain_text,
    results_table,
    write_curves,
    write_metrics,
    write_sweep,
)
from trainer.scores import Scores


def _scores(accuracy: float) -> Scores:
    return Scores(examples=200, accuracy=accuracy, macro_f1=accuracy - 0.01, per_label=(), confusion=())


def test_mean_and_spread() -> None:
    assert mean_and_spread([0.5]) == (0.5, 0.0)
    assert mean_and_spread([0.4, 0.6]) == pytest.approx((0.5, 0.1414), abs=1e-4)
    assert percent([0.812]) == "81.2"
    assert percent([0.80, 0.82]) == "81.0 ± 1.4"


def test_the_table_has_a_row_for_each_method() -> None:
    rows = [
        TableRow("majority", (_scores(0.5),)),
        TableRow("head only", (_scores(0.761),)),
        TableRow("prompt-tuning", (_scores(0.81), _scores(0.82), _scores(0.83))),
    ]
    text = plain_text(results_table("sentiment", "test", rows))
    assert "sentiment: test set, 200 examples" in text
    assert [line.split("│")[1:5] for line in text.splitlines() if "prompt-tuning" in line] == [
        [" prompt-tuning ", " 82.0 ± 1.0 ", " 81.0 ± 1.0 ", "     3 "]
    ]
    assert "\x1b" not in text


def test_curves_are_a_picture_of_every_seed(tmp_path: Path) -> None:
    def drawn(name: str, seeds: int, reference: float | None) -> bytes:
        curves = {
            seed: [
                Point(epoch / 2, 1 / epoch, 0.7 + 0.01 * epoch + 0.01 * seed, 0.7) for epoch in range(1, 7)
            ]
            for seed in range(seeds)
        }
        write_curves(tmp_path / name, "sentiment: prompt-tuning on minilm", curves, reference)
        return (tmp_path / name).read_bytes()

    one, again, two = drawn("a.png", 1, None), drawn("b.png", 1, None), drawn("c.png", 2, 0.72)
    assert one.startswith(b"\x89PNG\r\n")
    assert one == again
    assert one != two


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """As on a full disk, where matplotlib alone leaves a traceback and a torn file."""
    curves = {0: [Point(1.0, 0.5, 0.7, 0.7)]}
    with pytest.raises(RunFolderError, match=r"gone/curves\.png: No such file"):
        write_curves(tmp_path / "gone" / "curves.png", "a title", curves, None)


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.json", {"accuracy": 0.5, "label": "é"})
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"accuracy": 0.5, "label": "é"}
    with pytest.raises(ValueError, match="Out of range"):
        write_metrics(tmp_path / "m.json", {"accuracy": float("nan")})


def test_metrics_are_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their presence says that a run is finished: one that is killed on the way has none."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_metrics(tmp_path / "metrics.json", {"accuracy": 0.5})
    assert not (tmp_path / "metrics.json").exists()


def test_square_brackets_in_names_and_reasons_are_shown_as_they_are() -> None:
    reason = "runs/[old]/x.jsonl: no such [/b] file"
    assert reason in plain_text(many_table({}, {"a": reason}))
    rows = [TableRow("[/INST] {text}", (_scores(0.5),))]
    shown = plain_text(results_table("[/task]", "test", rows))
    assert "[/INST] {text}" in shown
    assert "[/task]: test set" in shown


def test_dollars_in_a_settings_name_are_no_formula(tmp_path: Path) -> None:
    point = Point(1.0, 0.5, 0.5, 0.5)
    title = r"task: method on m$_$x^{"  # a backbone's folder may be called so
    write_curves(tmp_path / "c.png", title, {0: [point]}, None)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    write_sweep(tmp_path / "s.png", title, {r"template=$ \nothing{text} $": [[point]]}, "none")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_of_many_tasks_the_prompts_figure_is_what_is_published(tmp_path: Path) -> None:
    def told(*rows: TableRow) -> str:
        seeds: dict[str, object] = {"seeds": [{}] * len(rows[2].scores) if len(rows) > 2 else [{}]}
        if len(rows) > 3:
            seeds["ensemble"] = {}
        metrics = {
            "summary": {row.name: row.summary() for row in rows},
            "version": "0123456789abcdef",
            **seeds,
        }
        write_metrics(tmp_path / "m.json", metrics)
        return plain_text(many_table({"film": tmp_path / "m.json"}, {}))

    floors = TableRow("majority", (_scores(0.5),)), TableRow("head only", (_scores(0.7),))
    seeds, joint = (
        TableRow("p-tuning-v2", (_scores(0.8), _scores(0.82))),
        TableRow("ensemble of 2", (_scores(0.9),)),
    )
    assert "81.0 ± 1.4" in told(*floors, seeds)
    assert "90.0" in (table := told(*floors, seeds, joint))
    assert "81.0" not in table
    assert "±" not in table
    alone = told(*floors, TableRow("p-tuning-v2", (_scores(0.8),)))
    assert "80.0" in alone
    assert "±" not in alone
    assert "–" in told(*floors)
    (tmp_path / "m.json").write_text('{"summary": {}}')
    assert "cannot" in plain_text(many_table({"film": tmp_path / "m.json"}, {}))
