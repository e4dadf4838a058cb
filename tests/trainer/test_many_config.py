"""The file that describes many tasks: what it may say, and what is said of one that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

import trainer
from trainer import ConfigError


def test_a_file_of_many_is_told_from_one_of_one(file: Path, tmp_path: Path) -> None:
    assert trainer.is_many(file)
    one = tmp_path / "one.toml"
    one.write_text('task_id = "film"\n')
    assert not trainer.is_many(one)
    for text, says in (
        ('task_id = "a"\n[defaults]\n', "defaults: a file of one task has none"),
        ("[[tasks]]\n", r"each task is a table \[\[task\]\]"),
        ("[defaults]\n", "for each task"),
    ):
        one.write_text(text)
        assert trainer.is_many(one)
        with pytest.raises(ConfigError, match=says):
            trainer.load_many(one)


def test_overrides_are_laid_over_every_task(file: Path) -> None:
    config = trainer.load_many(file, {"optimiser.epochs": 9, "seeds": [7]})
    assert {task.optimiser.epochs for task in config.tasks} == {9}
    assert {task.seeds for task in config.tasks} == {(7,)}
    assert config.tasks[0].prompt.num_virtual_tokens == 3
    assert config.tasks[0].data.train == str(file.parent / "film.jsonl")
    assert config.tasks[1].output == str(file.parent / "all" / "book")
    assert config.rows_at_once == 40
    assert trainer.load_many(file, {"rows_at_once": 8}).rows_at_once == 8
    with pytest.raises(ConfigError, match="rows_at_once: expected"):
        trainer.load_many(file, {"rows_at_once": 0})


@pytest.mark.parametrize("tasks", ["task = []", "task = [1]", "task = 1"])
def test_a_file_without_a_task_is_one_line(tmp_path: Path, tasks: str) -> None:
    path = tmp_path / "many.toml"
    path.write_text(f'output = "all"\n{tasks}\n')
    with pytest.raises(ConfigError, match=r"expected output = .* and a \[\[task\]\] for each task"):
        trainer.load_many(path)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('task_id = "book"', 'task_id = "film"', "task film is there twice"),
        ("seeds = [2]", 'device = "cuda"', "share the backbone"),
        ("seeds = [2]", "seed = [2]", "task book: seed: unknown setting"),
        ('task_id = "book"', 'task_id = "../book"', "task ../book: task_id: not a task id"),
        ('task_id = "book"', 'task_id = "state"', "task state: a file or folder of that name"),
        ("[defaults]", '[defaults]\ntask_id = "film"', r"task_id: each \[\[task\]\] has its own"),
        (
            "rows_at_once = 40",
            "rows_at_onze = 40",
            r"rows_at_onze: unknown setting; did you mean rows_at_once\?",
        ),
        ("rows_at_once = 40", "epochs = 3", "epochs: unknown setting; what all tasks share"),
        ("rows_at_once = 40", "rows_at_once = 0", "rows_at_once: expected"),
        ("rows_at_once = 40", "rank = 3", 'rank: is that of share = "factored"'),
        ("rows_at_once = 40", 'share = "prompt"\nrank = 1', 'rank: is that of share = "factored"'),
        ("seeds = [2]", 'output = "elsewhere"', "output: each task's folder is made in the one at the top"),
        ("seeds = [2]", "rows_at_once = 8", "rows_at_once: one step is for all tasks: give it at the top"),
    ],
)
def test_what_cannot_work_is_one_line(file: Path, before: str, after: str, says: str) -> None:
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ConfigError, match=says):
        trainer.load_many(file)


def test_no_task_id_is_laid_over_every_task(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"task_id: each \[\[task\]\] has its own"):
        trainer.load_many(file, {"task_id": "film"})
    assert len(trainer.load_many(file, {"task_id": None}).tasks) == 4
