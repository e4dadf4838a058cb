"""Tasks that learn together: what they share, and the plain prompts that each of them ends with."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import trainer
from backbone import Backbone
from prompt_store import decode_prompt
from tests.backbone.families import checkpoint
from tests.trainer.conftest import Divided, separable, write_jsonl
from trainer import ConfigError, ManyResult, NotBetterError, TrainerError, TrainingInterruptedError
from trainer.evaluation import loss
from trainer.interrupt import StopRequest
from trainer.joint import check_together, joint_learners
from trainer.learner import Learner
from trainer.mixture import step
from trainer.multitask import Factored
from trainer.progress import TrainingProgress
from trainer.run import Run, RunResult

pytestmark = pytest.mark.usefixtures("quick_runs")

FILE = """
output = "all"
share = "factored"

[defaults]
backbone = "{backbone}"
device = "cpu"
dtype = "float32"
method = "p-tuning-v2"
seeds = [0, 1]
prompt.num_virtual_tokens = 3
optimiser = {{ epochs = 3, batch_size = 16, evaluations = 2, prompt_lr = 0.05 }}

[[task]]
task_id = "film"
data.train = "film.jsonl"

[[task]]
task_id = "book"
data.train = "book.jsonl"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    swapped = [
        {**row, "label": "yes" if row["label"] == "negative" else "no"} for row in separable(80, seed=4)
    ]
    write_jsonl(tmp_path / "film.jsonl", separable(96))
    write_jsonl(tmp_path / "book.jsonl", swapped)
    path = tmp_path / "many.toml"
    path.write_text(FILE.format(backbone=checkpoint("bert")))
    return path


def _runs(file: Path, backbone: Backbone, console: Console) -> list[Run]:
    runs = [Run(config, backbone, console) for config in trainer.load_many(file).tasks]
    for run in runs:
        run.prepare(StopRequest())
    return runs


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_one_step_has_the_gradient_of_the_tasks_mean_loss(
    file: Path, bert: Backbone, console: Console, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    runs = _runs(file, bert, console)
    tasks, how = [run.task() for run in runs], Factored(2)
    learner = next(joint_learners(runs, tasks, how))
    values = []
    for at, share in enumerate(learner.shares()):
        prompt = bert.bind(share.task.manifest, how.fold_task(learner.parameters, at))
        scores = torch.stack(bert.forward(share.rows, [prompt] * len(share.rows)))
        values.append(loss(scores, share.targets, multi_label=False))
    names = list(learner.parameters)
    assert {"shared.prefix.encoder.key", "task.1.prefix.encoder.value.u", "task.0.head.0.bias"} < set(names)
    expected = torch.autograd.grad(sum(values) / 2, [learner.parameters[name] for name in names])
    seen: list[object] = []
    monkeypatch.setattr(Learner, "advance", lambda _, value, gradients: seen.extend([value, gradients]))
    step(bert, [learner], Divided(processes))
    assert seen[0] == pytest.approx(sum(float(value.detach()) for value in values) / 2, rel=1e-5)
    for name, one, other in zip(names, expected, seen[1], strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5, msg=name)


def test_factored_tasks_end_with_plain_prompts_that_share_one(
    file: Path, console: Console, tmp_path: Path
) -> None:
    result = trainer.train_many(trainer.load_many(file), console=console)
    assert list(result.finished) == ["film", "book"]
    keys = []
    for task_id in ("film", "book"):
        prompt = decode_prompt((tmp_path / "all" / task_id / "seeds" / "seed-0.safetensors").read_bytes())
        assert set(prompt.tensors) == {
            "prefix.encoder.key",
            "prefix.encoder.value",
            "head.0.weight",
            "head.0.bias",
        }
        how = {"share": "factored", "tasks": ["film", "book"], "rank": 1}
        assert prompt.manifest.training["jointly"] == how
        keys.append(np.asarray(prompt.tensors["prefix.encoder.key"], np.float64))
    assert np.abs(keys[0] - keys[1]).max() > 1e-2
    # Shared times rank one, so their ratio is rank one: every 2 × 2 minor of it vanishes.
    ratio = np.moveaxis(keys[0] / keys[1], 1, 0).reshape(3, -1)
    ratio = ratio[:, (np.abs(np.moveaxis(keys[1], 1, 0).reshape(3, -1)) > 0.1).all(axis=0)]
    assert ratio.shape[1] > 10
    singular = np.linalg.svd(ratio, compute_uv=False)
    assert singular[1] < 0.02 * singular[0]
    new = trainer.load_config(
        None,
        {"task_id": "new", "output": str(tmp_path / "new"), "backbone": str(checkpoint("bert")), "device": "cpu",
         "dtype": "float32", "method": "p-tuning-v2", "data.train": str(tmp_path / "film.jsonl"), "seeds": (0,),
         "prompt.init_from": str(tmp_path / "all" / "new-task.safetensors"), "optimiser.epochs": 1},
    )  # fmt: skip
    assert trainer.train(new, console=console).prompt.is_file()
    _no_task_is_served_from(tmp_path / "all" / "new-task.safetensors", tmp_path)


def _no_task_is_served_from(start: Path, tmp_path: Path) -> None:
    """It has the first task's id, as every prompt file must have one."""
    assert decode_prompt(start.read_bytes()).manifest.task_id == "film"
    with pytest.raises(NotBetterError, match="where new tasks start, learned for none"):
        trainer.publish(start, str(tmp_path / "store"))


def test_a_new_tasks_start_is_the_first_seeds_whichever_ended_first(
    file: Path, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill all are at rest, and leave in another order than they ended in."""
    short = {"seeds": [1, 0], "optimiser.epochs": 2, "optimiser.evaluations": 4}
    finished = Learner.finished.fget
    assert finished is not None
    monkeypatch.setattr(
        Learner,
        "finished",
        property(lambda self: finished(self) or (self.name.endswith("seed-0") and bool(self.points))),
    )
    alone = tmp_path / "alone"
    trainer.train_many(trainer.load_many(file, {**short, "output": str(alone)}), console=console)
    finish = Run.finish

    class Killed(BaseException):
        pass

    def killed(run: Run) -> RunResult:
        if run.config.task_id == "book":
            raise Killed
        return finish(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", killed)
        with pytest.raises(Killed):
            trainer.train_many(trainer.load_many(file, short), console=console)
    trainer.resume_many(tmp_path / "all", console=console)
    one, other = (folder / "new-task.safetensors" for folder in (alone, tmp_path / "all"))
    assert one.read_bytes() == other.read_bytes()


def test_tasks_go_on_from_a_shared_prompt_by_themselves(file: Path, console: Console, tmp_path: Path) -> None:
    """One is called as their common learner once was."""
    changed = file.read_text().replace('share = "factored"', 'share = "prompt"\nrows_at_once = 40')
    file.write_text(changed.replace('task_id = "book"', 'task_id = "joint"'))
    alone = trainer.train_many(trainer.load_many(file), console=console)
    assert list(alone.finished) == ["film", "joint"]
    one, other = (
        decode_prompt(folder.prompt.read_bytes()).tensors["prefix.encoder.key"]
        for folder in alone.finished.values()
    )
    assert np.abs(one.astype(float) - other).max() > 1e-3
    start = tmp_path / "all" / "new-task.safetensors"
    shared = decode_prompt(start.read_bytes()).tensors["prefix.encoder.key"].astype(float)
    assert np.abs(shared - one).max() > 1e-3
    _no_task_is_served_from(start, tmp_path)


def test_a_task_that_fails_after_the_joint_training_fails_alone(
    file: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Run.finish

    def fails(run: Run) -> RunResult:
        if run.config.task_id == "film":
            raise ConfigError("a late slip")
        return finish(run)

    monkeypatch.setattr(Run, "finish", fails)
    short = {"optimiser.epochs": 1, "optimiser.evaluations": 1}
    result = trainer.train_many(trainer.load_many(file, short), console=console)
    assert (list(result.finished), result.failures) == (["book"], {"film": "a late slip"})


def _edits_are_refused(folder: Path, share: str, console: Console) -> None:
    """What decides what is learned may not be changed between a stop and --resume."""
    listed = json.loads((folder / "many.json").read_text())
    edits: list[tuple[dict[str, object], str]] = [
        ({"share": None}, "share changed since this run began"),
        ({"share": "prompt" if share == "factored" else "factored"}, "share changed since this run began"),
        ({"share": "foo"}, r"many\.json: share: expected"),
        ({"rank": 0}, r"many\.json: rank: expected a whole number"),
        ({"rank": "x"}, r"many\.json: rank: expected a whole number"),
        ({"tasks": listed["tasks"][:1]}, "the tasks changed since this run began"),
    ]
    if share == "factored":
        edits.append(({"rank": 2}, "rank changed since this run began"))
    for edit, says in edits:
        (folder / "many.json").write_text(json.dumps(listed | edit))
        with pytest.raises(TrainerError, match=says):
            trainer.resume_many(folder, console=console)
    (folder / "many.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(("share", "every"), [("prompt", 19), ("factored", 9)])
def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(
    share: str, every: int, file: Path, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(file.read_text().replace('share = "factored"', f'share = "{share}"'))
    alone = trainer.train_many(trainer.load_many(file, {"output": str(tmp_path / "alone")}), console=console)
    steps = 0

    def stepped(progress: TrainingProgress, learner: Learner, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps % every == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "stepped", stepped)
    result: ManyResult | None = None
    with pytest.raises(TrainingInterruptedError):
        trainer.train_many(trainer.load_many(file), console=console)
    _edits_are_refused(tmp_path / "all", share, console)
    while result is None:
        try:
            result = trainer.resume_many(tmp_path / "all", console=console)
        except TrainingInterruptedError:
            assert steps < 500
    assert steps > 2 * every
    assert not list((tmp_path / "all" / "state").glob("*.safetensors"))
    for task_id, folder in alone.finished.items():
        assert folder.prompt.read_bytes() == result.finished[task_id].prompt.read_bytes()


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('share = "factored"', 'share = "all"', "share: expected"),
        ('share = "factored"', 'share = "factored"\nrank = 0', "rank: expected"),
        (
            'task_id = "book"',
            'task_id = "book"\nprompt.num_virtual_tokens = 5',
            "num_virtual_tokens is 5 for book and 3",
        ),
        ('task_id = "book"', 'task_id = "book"\nseeds = [7]', "seeds is"),
        ('method = "p-tuning-v2"', 'method = "head-only"', "trains no prompt"),
        ('method = "p-tuning-v2"', 'method = "prefix-tuning"', "what is shared is the prompt itself"),
    ],
)
def test_what_cannot_share_is_one_line_before_anything_is_written(
    file: Path, console: Console, tmp_path: Path, before: str, after: str, says: str
) -> None:
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ConfigError, match=says):
        trainer.train_many(trainer.load_many(file), console=console)
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"init_from": "runs/a"},
            "prompt.init_from is runs/a for book and nothing for film: tasks that share",
        ),
        ({"decoder": "start"}, "prompt.decoder is given for book and left out for film"),
    ],
)
def test_one_start_is_for_all_that_share(file: Path, changed: dict[str, str], says: str) -> None:
    film, book = trainer.load_many(file).tasks
    check_together([film, book])
    other = book.model_copy(update={"prompt": book.prompt.model_copy(update=changed)})
    with pytest.raises(ConfigError, match=says):
        check_together([film, other])
