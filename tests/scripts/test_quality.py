"""The driver of the accuracy table, on tiny sets and with a stand-in for the runs that trains nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import trainer
from promptmux.__main__ import build
from scripts import quality, quality_page
from scripts.quality import Cell, cells, measure_all
from scripts.quality_data import SETS, SPLITS, prepare
from scripts.quality_rows import FULL, HEAD, ROWS, RUNS, Run
from trainer.many_config import ManyConfig
from trainer.methods import DEFAULTS

COMMANDS = get_command(build())

# A run of the stand-in: counts its starts, can be slow to end, and scores what its name says.
STAND_IN = """
import json, pathlib, signal, sys, time
words = sys.argv[1:]
resumed = "--resume" in words
folder = pathlib.Path(words[words.index("--resume" if resumed else "--output") + 1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.toml").write_text('output = "here"\\nmethod = "stand-in"\\n[optimiser]\\nepochs = 4\\n')
with (folder / "starts").open("a") as file:
    file.write("resumed " if resumed else "new ")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("waiting", flush=True)
while "--slow" in words and not resumed:
    time.sleep(0.05)
if "--broken" in words:
    sys.exit(2)
scores = {"accuracy": {"mean": 0.8, "spread": 0.01}, "macro_f1": {"mean": 0.7, "spread": 0.01}}
split = {"accuracy": 0.8, "confusion": [[1]], "per_label": [{}]}
metrics = {"summary": {"p-tuning-v2": scores}, "seeds": [{"seed": 0, "dev": split, "test": split}], "seconds": 60}
(folder / "metrics.json").write_text(json.dumps(metrics))
"""


def write(file: Path, *rows: tuple[str, ...]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    names = ("text", "label", "text_pair")
    file.write_text("".join(json.dumps(dict(zip(names, row, strict=False))) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five tiny sets; `subj` and `rt-polarity` share texts, `rte` has no test file."""
    folder = tmp_path / "given"
    for name in SETS:
        for split in SPLITS:
            write(folder / name / f"{split}.jsonl", *((f"{name} {split} {at}", "x") for at in range(4)))
    (folder / "rte" / "test.jsonl").unlink()
    premises = [(f"premise {at // 2}", "yes", f"guess {at}") for at in range(40)]
    write(
        folder / "rte" / "train.jsonl", *premises, ("Held out", "yes", "pair ."), ("held out", "no", "other")
    )
    write(folder / "rte" / "dev.jsonl", ("held  out", "yes", "Pair."))
    write(
        folder / "subj" / "train.jsonl",
        ("it 's  Good , really", "x"),
        ("its good, really", "x"),
        ("own", "x"),
    )
    write(folder / "rt-polarity" / "test.jsonl", ("It's good, really", "x"))
    return folder


def lines(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def test_what_any_set_holds_out_is_in_no_training_set(data: Path, tmp_path: Path) -> None:
    counts = prepare(data, tmp_path / "clean")
    assert lines(tmp_path / "clean" / "subj" / "train.jsonl") == ["its good, really", "own"]
    assert counts["subj"]["also in"] == {"rt-polarity test": 1}
    assert (counts["subj"]["train"], counts["subj"]["kept"]) == (3, 2)
    assert counts["trec6"]["also in"] == {}
    assert "| subj | 3 | 1 | rt-polarity test 1 | 4 | 4 |" in quality_page.removed(counts)


def test_without_a_test_file_dev_is_reported_and_premises_stay_together(data: Path, tmp_path: Path) -> None:
    prepare(data, tmp_path / "clean")
    train, dev, test = (lines(tmp_path / "clean" / "rte" / f"{split}.jsonl") for split in SPLITS)
    assert test == ["held  out"]
    assert "Held out" not in train + dev, "the same pair, held out"
    assert "held out" in train + dev, "the same first text with another second one is another example"
    assert len(train) + len(dev) == 41
    assert 6 <= len(dev) <= 8
    assert not set(train) & set(dev)


def test_the_copies_are_the_same_every_time(data: Path, tmp_path: Path) -> None:
    assert prepare(data, tmp_path / "one") == prepare(data, tmp_path / "two")
    for file in (tmp_path / "one").rglob("*.json*"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no .*train\.jsonl; give the folder of the data sets with --data"):
        prepare(tmp_path, tmp_path / "clean")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cell]]:
    """A cell whose run is the stand-in, in a repository of its own."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(quality, "ROOT", root)
    monkeypatch.setattr(quality, "WORK", root / "runs" / "results")
    monkeypatch.setattr(quality, "KEPT", root / "docs" / "results" / "quality")
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield lambda name, *more: Cell(
        "subj", Run(name, {"p-tuning-v2": "own name"}, ("stand_in", "train", *more))
    )
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def test_a_finished_cell_is_kept_and_not_run_again(data: Path, stand_in: Callable[..., Cell]) -> None:
    cell = stand_in("one")
    assert measure_all([cell], data) == []
    assert measure_all([cell], data) == []
    assert (cell.folder / "starts").read_text() == "new "
    kept = json.loads(cell.kept.read_text())
    assert kept["command"][:2] == ["stand_in", "train"]
    assert kept["command"][kept["command"].index("--test") + 1] == "runs/results/data/subj/test.jsonl"
    assert kept["settings"] == {"method": "stand-in", "optimiser": {"epochs": 4}}
    assert kept["seeds"] == [{"seed": 0, "dev": {"accuracy": 0.8}, "test": {"accuracy": 0.8}}]
    assert {"commit", "date", "cpu"} <= set(kept["machine"])
    assert not kept["resumed"]


def test_an_interrupted_cell_goes_on_from_its_run_folder(data: Path, stand_in: Callable[..., Cell]) -> None:
    cell = stand_in("two")
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.toml").write_text("")
    assert measure_all([cell], data) == []
    assert (cell.folder / "starts").read_text() == "resumed "
    kept = json.loads(cell.kept.read_text())
    assert kept["resumed"]
    assert "--train" in kept["command"], "what was run, not how it went on"


def test_a_failed_cell_is_told_and_the_others_run(
    data: Path, stand_in: Callable[..., Cell], capfd: pytest.CaptureFixture[str]
) -> None:
    broken, other = stand_in("broken", "--broken"), stand_in("other")
    assert measure_all([broken, other], data) == ["subj/broken: exit code 2"]
    assert "no figures for subj/broken: exit code 2" in capfd.readouterr().out
    assert not broken.kept.exists()
    assert other.kept.exists()


def test_a_signal_ends_the_cell_in_order_and_begins_no_other(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "stand_in.py").write_text(STAND_IN)
    script = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[3])\n"
        "from scripts import quality; from scripts.quality_rows import Run\n"
        "root = pathlib.Path(sys.argv[1]); quality.ROOT = root\n"
        "quality.WORK = root / 'runs' / 'results'; quality.KEPT = root / 'docs' / 'results' / 'quality'\n"
        "runs = [Run(name, {}, ('stand_in', 'train', '--slow')) for name in ('one', 'two')]\n"
        "quality.measure_all([quality.Cell('subj', run) for run in runs], pathlib.Path(sys.argv[2]))\n"
    )
    here = Path(quality.__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(root), str(data), str(here)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.strip() == "waiting":
                break
        driver.send_signal(signal.SIGTERM)
        rest = driver.stdout.read()
        assert driver.wait(30) == 0
    assert "stopped; the same command goes on" in rest
    assert (root / "runs" / "results" / "subj-one" / "starts").read_text() == "new "
    assert not (root / "runs" / "results" / "subj-two").exists()


def test_only_names_sets_runs_and_cells() -> None:
    everything = [*cells([])]
    assert len(everything) == len(SETS) * len(RUNS)
    assert {cell.name for cell in cells(["rte"])} == {"rte"}
    assert {cell.run.name for cell in cells(["p-tuning-v2"])} == {"p-tuning-v2"}
    assert [(cell.name, cell.run.name) for cell in cells(["subj/p-tuning-v2"])] == [("subj", "p-tuning-v2")]
    with pytest.raises(SystemExit, match="expected SET, RUN or SET/RUN"):
        [*cells(["subj/none"])]


@pytest.mark.parametrize("cell", [*cells([])], ids=lambda cell: f"{cell.name}/{cell.run.name}")
def test_every_cell_is_a_command_with_valid_settings(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[trainer.TrainConfig] = []

    def stop(config: trainer.TrainConfig | ManyConfig, *_: object, **__: object) -> None:
        given.extend(config.tasks if isinstance(config, ManyConfig) else [config])
        raise trainer.TrainerError("read, and not run")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality, "ROOT", tmp_path)
    monkeypatch.setattr(quality, "WORK", tmp_path / "runs" / "results")
    for where in ("trainer.train", "trainer.train_many", "trainer.reference.run_references"):
        monkeypatch.setattr(where, stop)
    with pytest.raises(trainer.TrainerError, match="read, and not run"):
        COMMANDS(cell.command()[1:], standalone_mode=False)
    config = next(config for config in given if config.task_id == cell.name)
    assert config.data.test == f"runs/results/data/{cell.name}/test.jsonl"
    assert config.method in cell.run.rows.values() or "reference" in cell.run.command
    if cell.run.together:
        assert [task.task_id for task in given] == [*SETS]
        assert Path(config.output) == cell.folder.relative_to(tmp_path)


def test_every_row_comes_from_one_run() -> None:
    assert sorted(row for run in RUNS for row in run.rows) == sorted(ROWS)


def test_a_share_is_taken_of_long_ways_only() -> None:
    def rows(head: float, prompt: float, full: float) -> dict[str, quality_page.Scores]:
        found = {HEAD: head, "p-tuning-v2": prompt, FULL: full}
        return {row: {"accuracy": {"mean": mean, "spread": 0.0}} for row, mean in found.items()}

    assert quality_page.recovered(rows(0.8, 0.84, 0.85), "p-tuning-v2") == pytest.approx(0.8)
    assert quality_page.recovered(rows(0.8, 0.79, 0.85), "p-tuning-v2") == pytest.approx(-0.2)
    assert quality_page.recovered(rows(0.8, 0.81, 0.81), "p-tuning-v2") is None
    assert quality_page.recovered(rows(0.8, 0.84, 0.85), HEAD) is None


def test_a_cell_of_before_a_default_changed_is_told() -> None:
    def cell(word_dropout: float, prompt_lr: float) -> dict[str, object]:
        defaults = DEFAULTS["prompt-tuning"]
        optimiser = {
            "batch_size": defaults.batch_size, "head_lr": defaults.head_lr, "averaging": defaults.averaging,
            "word_dropout": word_dropout, "prompt_lr": prompt_lr,
        }  # fmt: skip
        settings = {"prompt": {"reparameterisation": "residual"}, "optimiser": optimiser}
        return {"method": "prompt-tuning", "settings": settings}

    today, rate = DEFAULTS["prompt-tuning"].word_dropout, DEFAULTS["prompt-tuning"].networks["residual"]
    assert quality_page.earlier_defaults(cell(today, rate)) == {}
    assert quality_page.earlier_defaults(cell(0.25, rate)) == {"optimiser.word_dropout": 0.25}
    assert quality_page.earlier_defaults(cell(today, 7.0)) == {"optimiser.prompt_lr": 7.0}
    assert quality_page.earlier_defaults({"settings": {"the recipe": {}}}) == {}, (
        "a reference has a recipe of its own"
    )
    of = {"p-tuning": {"earlier": {"optimiser.averaging": 0.5}}, "p-tuning-v2": {"earlier": {}}}
    told = "- still with `optimiser.averaging=0.5`, the default when they were measured: p-tuning"
    assert quality_page.outdated(dict.fromkeys(SETS, of)) == f"{told} (all sets)"
    empty: dict[str, dict[str, quality_page.Scores]] = {name: {} for name in SETS}
    assert quality_page.outdated({**empty, "rte": of, "subj": of}) == f"{told} (rte, subj)"
    assert quality_page.outdated(empty) == ""


def test_a_cell_with_another_linear_head_than_the_rows_is_told() -> None:
    def scores(mean: float, own_head: float | None) -> quality_page.Scores:
        return {"accuracy": {"mean": mean, "spread": 0.0}, "own_head": own_head}

    rows = {
        HEAD: scores(0.912, 0.912), FULL: scores(0.96, None), "p-tuning": scores(0.93, 0.911),
        "p-tuning-v2": scores(0.94, 0.921),
    }  # fmt: skip
    told = quality_page.verdict({name: rows if name == "subj" else {} for name in quality_page.SETS})
    assert told.splitlines()[1].endswith(
        "of another day or machine than the row's 91.2 is the linear head of these: p-tuning-v2 92.1"
    )


def test_the_page_says_what_was_not_run_and_refuses_figures_of_other_data(
    data: Path, stand_in: Callable[..., Cell]
) -> None:
    cell = stand_in("p-tuning-v2")
    assert measure_all([cell], data) == []
    found = quality_page.measured(quality.KEPT)
    shown = quality_page.table(found)
    assert "| subj | p-tuning-v2 | 80.0 ± 1.0 | 70.0 ± 1.0 | 80.0 ± 0.0 | – | 1.0 | 1 |" in shown
    assert "full fine-tuning" not in shown
    assert "full fine-tuning (`--only full-fine-tuning`)" in quality_page.left_out(found)
    assert "p-tuning-v2 (" not in quality_page.left_out(found)
    other = {"trec6": {FULL: found["subj"]["p-tuning-v2"]}}
    assert "| subj | full fine-tuning | not run | | | | | |" in quality_page.table(found | other)
    kept = json.loads(cell.kept.read_text())
    cell.kept.write_text(json.dumps(kept | {"cleaned_data": "another"}))
    with pytest.raises(SystemExit, match="was measured on other data"):
        quality_page.measured(quality.KEPT)
