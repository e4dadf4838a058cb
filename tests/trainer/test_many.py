"""Many tasks in one go: each ends with the run folder that it would have alone."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import trainer
from prompt_store import InvalidPrompt, decode_prompt
from trainer import (
    ConfigError,
    DataError,
    ManyResult,
    RunFolderError,
    TrainConfig,
    TrainerError,
    TrainingInterruptedError,
)
from trainer.learner import Learner
from trainer.progress import TrainingProgress
from trainer.run import Run, RunResult
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_runs")


def _tensors(path: Path) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(tensor, np.float64)
        for name, tensor in decode_prompt(path.read_bytes()).tensors.items()
    }


def test_each_task_ends_as_it_would_alone(file: Path, console: Console, tmp_path: Path) -> None:
    result = trainer.train_many(trainer.load_many(file), console=console)
    assert list(result.finished) == ["film", "book", "probe"]
    assert list(result.failures) == ["wild"]
    says = "use a smaller optimiser.prompt_lr; train it alone, into another --output"
    assert result.failures["wild"].endswith(says)
    for task_id in ("film", "book"):
        config = next(c for c in trainer.load_many(file).tasks if c.task_id == task_id)
        alone = trainer.train(
            config.model_copy(update={"output": str(tmp_path / f"{task_id}-alone")}), console=console
        )
        ours = json.loads(result.finished[task_id].metrics.read_text())
        theirs = json.loads((alone.folder / "metrics.json").read_text())
        assert ours["summary"] == theirs["summary"]
        for seed in config.seeds:
            name = f"seeds/seed-{seed}.safetensors"
            one, other = _tensors(result.finished[task_id].root / name), _tensors(alone.folder / name)
            for key, value in one.items():  # stored in half precision
                np.testing.assert_allclose(value, other[key], rtol=2e-2, atol=2e-3)
    kept = {path.name.split(".seed-")[0] for path in (tmp_path / "all" / "state").glob("*.safetensors")}
    assert kept == {"wild"}  # what a finished task learned is in its folder, and its state serves nobody
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "failed" in printed
    with pytest.raises(RunFolderError, match="go on"):
        trainer.train_many(trainer.load_many(file), console=console)


def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(
    file: Path, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = trainer.train_many(trainer.load_many(file, {"output": str(tmp_path / "alone")}), console=console)
    monkeypatch.chdir(tmp_path)  # it is started where its file is, and goes on from elsewhere
    steps = 0

    def stepped(progress: TrainingProgress, learner: Learner, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps % 11 == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "stepped", stepped)
    with pytest.raises(TrainingInterruptedError, match=r"promptmux train --resume .*all"):
        trainer.train_many(trainer.load_many(Path(file.name)), console=console)
    kept = trainer.load_config(tmp_path / "all" / "film" / "config.toml")
    assert (kept.labels, kept.prompt.pooling) == (("negative", "positive"), "mean")  # what ran, with no gaps
    monkeypatch.chdir("/")
    with pytest.raises(RunFolderError, match=r"trained with others; go on with all: promptmux .*all$"):
        trainer.resume(tmp_path / "all" / "film", console=console)
    result: ManyResult | None = None
    while result is None:
        try:
            result = trainer.resume_many(tmp_path / "all", console=console)
        except TrainingInterruptedError:
            assert steps < 1000
    assert steps > 3 * 11
    for task_id, folder in alone.finished.items():
        assert folder.prompt.read_bytes() == result.finished[task_id].prompt.read_bytes()


def test_a_signal_while_the_last_task_is_written_interrupts_nothing(
    file: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Run.finish

    def finishes(run: Run) -> RunResult:
        if run.config.task_id == "film":
            signal.raise_signal(signal.SIGINT)
        return finish(run)

    monkeypatch.setattr(Run, "finish", finishes)
    config = trainer.load_many(file, {"optimiser.epochs": 1, "optimiser.evaluations": 1})
    config = replace(config, tasks=config.tasks[:1])
    assert list(trainer.train_many(config, console=console).finished) == ["film"]
    with pytest.raises(RunFolderError, match="all of its tasks are finished"):
        trainer.resume_many(config.output, console=console)


def test_a_task_with_a_seed_that_diverged_leaves_its_rows_to_others(
    file: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: dict[str, int] = {}

    def stepped(progress: TrainingProgress, learner: Learner, loss: float) -> None:
        last[learner.name] = learner.step
        if learner.name == "film.seed-0" and learner.step == 2:
            learner._fail(3, "the loss is nan")

    monkeypatch.setattr(TrainingProgress, "stepped", stepped)
    result = trainer.train_many(trainer.load_many(file), console=console)
    assert result.failures["film"].startswith("film.seed-0, step 3: the loss is nan; ")
    assert "book" in result.finished
    assert last["film.seed-1"] == last["film.seed-0"] == 2
    assert last["book.seed-2"] > 10


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (
            'task_id = "wild"',
            'task_id = "wild"\nhead.words.positive = ["good"]\nprompt.template = "{text} {mask}"',
            "task wild: head.words: ",
        ),
        ('task_id = "wild"', 'task_id = "wild"\nprompt.init_from = "gone"', "task wild: prompt.init_from: "),
        ('task_id = "wild"', 'task_id = "wild"\nlog_with = ["nothing"]', "log_with: no tracker"),
        ('device = "cpu"', 'device = "nowhere"', "backbone: "),
    ],
)
def test_a_slip_in_the_last_task_shows_before_anything_is_written(
    file: Path, console: Console, tmp_path: Path, before: str, after: str, says: str
) -> None:
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ConfigError, match=says):
        trainer.train_many(trainer.load_many(file), console=console)
    assert not (tmp_path / "all").exists()


def test_a_task_that_fails_at_its_end_fails_alone(
    file: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = {"film": ConfigError("a late slip"), "probe": InvalidPrompt("too large")}
    finish = Run.finish

    def fails(run: Run) -> RunResult:
        if run.config.task_id in reasons:
            raise reasons[run.config.task_id]
        return finish(run)

    monkeypatch.setattr(Run, "finish", fails)
    short = {"optimiser.epochs": 1, "optimiser.evaluations": 1}
    result = trainer.train_many(trainer.load_many(file, short), console=console)
    assert list(result.finished) == ["book"]
    assert result.failures.items() >= {task: str(reason) for task, reason in reasons.items()}.items()


def test_a_slip_in_the_last_tasks_data_shows_before_anything_is_trained(
    file: Path, console: Console, tmp_path: Path
) -> None:
    file.write_text(
        file.read_text().replace(
            'data.train = "book.jsonl"\noptimiser.prompt_lr', 'data.train = "no.jsonl"\noptimiser.prompt_lr'
        )
    )
    with pytest.raises(DataError, match=r"task wild: .*no\.jsonl"):
        trainer.train_many(trainer.load_many(file), console=console)
    assert not (tmp_path / "all").exists()


def test_a_task_that_no_backbone_could_run_shows_before_anything_is_written(
    file: Path, console: Console, tmp_path: Path
) -> None:
    """Found in the step that all tasks share, it would end the training of all, and that again when resumed."""
    words = 'prompt.template = "{text} it was {mask} ."\nhead.words = {negative = ["bad"], positive = ["%s"]}'
    for slip, says in (
        (words % "zzqx film", "the label word 'zzqx film' is"),
        (words % "good" + '\nprompt.pooling = "cls"', "a verbalizer reads at the mask"),
        ('method = "prompt-tuning"\nprompt.num_virtual_tokens = 1000', "none is left"),
        ('head.start = "source"', "name a prompt there"),
        ('head.descriptions = {negative = "x"}', "head.descriptions: nothing for the label 'positive'"),
    ):
        path = tmp_path / "slip.toml"
        path.write_text(file.read_text().replace('task_id = "wild"', f'task_id = "wild"\n{slip}'))
        with pytest.raises(ConfigError, match=f"^task wild: .*{says}"):
            trainer.train_many(trainer.load_many(path), console=console)
        assert not (tmp_path / "all").exists()


def test_what_shows_only_at_a_tasks_first_step_costs_that_task_alone(
    file: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        file.read_text().replace('task_id = "book"', 'task_id = "book"\nhead.words = {negative = ["bad"], positive = '
                                 '["zzqx film"]}\nprompt.template = "{text} it was {mask} ."')
    )  # fmt: skip
    monkeypatch.setattr("trainer.run.check_start", lambda *_: None)
    short = {"optimiser.epochs": 1, "optimiser.evaluations": 1}
    result = trainer.train_many(trainer.load_many(file, short), console=console)
    assert list(result.finished) == ["film", "probe"]
    assert "the label word 'zzqx film' is" in result.failures["book"]


def test_killed_before_all_folders_are_made_it_goes_on_as_a_whole(
    file: Path, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = RunFolder.create

    def killed(folder: RunFolder, config: TrainConfig) -> None:
        if folder.root.name == "probe":
            raise KeyboardInterrupt
        create(folder, config)

    alone = {"method": "head-only"}  # nothing to train, so it is quick
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.train_many(trainer.load_many(file, alone), console=console)
    with pytest.raises(RunFolderError, match=r"go on \(promptmux train --resume .*all\)"):
        trainer.train_many(trainer.load_many(file, alone), console=console)
    with pytest.raises(RunFolderError, match="trained with others"):
        trainer.resume(tmp_path / "all" / "film", console=console)
    result = trainer.resume_many(tmp_path / "all", console=console)
    assert list(result.finished) == ["film", "book", "probe", "wild"]
    assert trainer.load_config(tmp_path / "all" / "wild" / "config.toml").data.train == str(
        tmp_path / "book.jsonl"
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tasks": 3}', '{"tasks": []}'])
def test_another_programs_many_json_is_no_list_of_tasks(tmp_path: Path, console: Console, text: str) -> None:
    (tmp_path / "many.json").write_text(text)
    assert RunFolder(tmp_path / "film").company is None
    with pytest.raises(RunFolderError, match=r"many.json: not a list of tasks"):
        trainer.resume_many(tmp_path, console=console)


def test_a_slip_in_the_list_of_tasks_is_named(tmp_path: Path, console: Console) -> None:
    """Where memory does not suffice, `rows_at_once` is to be given there."""
    (tmp_path / "many.json").write_text('{"tasks": ["a"], "rows_at_once": "few"}')
    with pytest.raises(ConfigError, match=r"many\.json: rows_at_once: expected a whole number"):
        trainer.resume_many(tmp_path, console=console)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (3, "no run to resume here"),
        ({"a": 3}, "no run to resume here"),
        ({"a": {"method": "zz"}}, r"many\.json: task_id: this setting is required$"),
    ],
)
def test_slips_in_the_listed_settings_are_one_line(
    tmp_path: Path, console: Console, settings: object, says: str
) -> None:
    (tmp_path / "many.json").write_text(json.dumps({"tasks": ["a"], "settings": settings}))
    with pytest.raises(TrainerError, match=says) as slip:
        trainer.resume_many(tmp_path, console=console)
    assert "\n" not in str(slip.value)
