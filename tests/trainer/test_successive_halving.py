from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

import trainer
from backbone import Backbone
from trainer import (
    ConfigError,
    RunFolderError,
    RunResult,
    TrainConfig,
    TrainingFailedError,
    TrainingInterruptedError,
)
from trainer.grid import Setting
from trainer.interrupt import StopRequest
from trainer.learner import Learner
from trainer.outcome import Reference
from trainer.probing import probe
from trainer.progress import TrainingProgress
from trainer.run import Run
from trainer.successive_halving import halvings

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("quick_runs")


def _plan(settings: Settings, **overrides: object) -> list[Setting]:
    """Learning rates from none to speak of to far too large."""
    made = []
    for rate in (1e-6, 0.05, 1e30, 1e-5):
        config = settings(
            method="p-tuning-v2", seeds=(0, 1), optimiser__prompt_lr=rate, optimiser__head_lr=1e-6,
            optimiser__evaluations=4, head__start="random", **overrides,
        )  # fmt: skip
        made.append(Setting(f"prompt_lr={rate}", {"optimiser.prompt_lr": rate}, config))
    return made


def test_the_setting_that_learns_is_found_and_the_others_stop_early(
    settings: Settings, console: Console
) -> None:
    result = trainer.sweep(_plan(settings), console=console)
    plan = json.loads((result.folder / "sweep.json").read_text())
    assert [rung["evaluations"] for rung in plan["rungs"]] == [1, 2, 4]
    assert [len(rung["kept"]) for rung in plan["rungs"]] == [2, 1, 1]
    assert plan["rungs"][-1]["kept"] == ["prompt_lr=0.05"]
    assert trainer.load_config(result.folder / "config.toml").optimiser.prompt_lr == 0.05
    assert result.rows[-1].scores[0].accuracy > 0.65  # chance is 0.5; the heads are random and stay it
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 of 4 settings stay" in printed
    assert "best: prompt_lr=0.05" in printed
    with pytest.raises(RunFolderError, match="there is a sweep in it already"):
        trainer.sweep(_plan(settings), console=console)
    with pytest.raises(RunFolderError, match="finished"):
        trainer.resume_sweep(result.folder, console=console)


def test_interrupted_it_goes_on_and_ends_the_same(
    settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = trainer.sweep(_plan(settings, output=str(tmp_path / "alone")), console=console)
    steps = 0

    def stepped(progress: TrainingProgress, learner: Learner, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps % 37 == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "stepped", stepped)
    with pytest.raises(TrainingInterruptedError, match="promptmux sweep --resume"):
        trainer.sweep(_plan(settings), console=console)
    result: RunResult | None = None
    while result is None:
        try:
            result = trainer.resume_sweep(tmp_path / "run", console=console)
        except TrainingInterruptedError:
            assert steps < 1000
    assert steps > 2 * 37
    assert result.prompt.read_bytes() == alone.prompt.read_bytes()
    plans = [json.loads((folder / "sweep.json").read_text()) for folder in (alone.folder, result.folder)]
    assert plans[0]["rungs"] == plans[1]["rungs"]


def test_interrupted_at_its_references_it_says_how_to_go_on(
    settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object, **named: object) -> Reference:
        signal.raise_signal(signal.SIGINT)
        return probe(*given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("trainer.run.probe", interrupted)
        with pytest.raises(TrainingInterruptedError, match=r"Go on with: promptmux sweep --resume \S+run$"):
            trainer.sweep(_plan(settings, optimiser__epochs=1)[:2], console=console)
    file = tmp_path / "run" / "sweep.json"
    begun = file.read_text()
    file.write_text(begun.replace('"start": "random"', '"start": "probe"', 1))
    with pytest.raises(RunFolderError, match=r"prompt_lr=\S+: head.start changed since this run began"):
        trainer.resume_sweep(tmp_path / "run", console=console)
    names = [setting["name"] for setting in json.loads(begun)["settings"]]
    file.write_text(begun.replace(names[1], "prompt_lr=7"))
    with pytest.raises(RunFolderError, match="the settings changed since this run began"):
        trainer.resume_sweep(tmp_path / "run", console=console)
    file.write_text(begun)
    assert trainer.resume_sweep(tmp_path / "run", console=console).prompt.is_file()


def test_killed_before_its_first_step_it_is_a_sweep_to_go_on_with(
    settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    plan = _plan(settings, optimiser__epochs=1)[:2]
    for where in ("trainer.run_folder.RunFolder.claim", "trainer.run.Run.prepare"):
        with monkeypatch.context() as patch:
            patch.setattr(where, killed)
            with pytest.raises(Killed):
                trainer.sweep(plan, console=console)
        assert trainer.resume_sweep(tmp_path / "run", console=console).prompt.is_file()
        shutil.rmtree(tmp_path / "run")


def test_of_equals_the_first_stay_and_it_is_said(settings: Settings, console: Console) -> None:
    same = [
        Setting(
            f"prompt_lr={rate}",
            {"optimiser.prompt_lr": rate},
            settings(
                method="p-tuning-v2", optimiser__prompt_lr=rate, optimiser__head_lr=1e-12, head__start="random",
                optimiser__evaluations=4, optimiser__epochs=1,
            ),
        )
        for rate in (1e-12, 2e-12, 3e-12)
    ]  # fmt: skip
    result = trainer.sweep(same, console=console)
    rungs = json.loads((result.folder / "sweep.json").read_text())["rungs"]
    assert rungs[-1]["kept"] == ["prompt_lr=1e-12"]
    printed = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "2 of 3 settings stay; 3 were equal, and the first of them stay" in printed


def test_a_template_with_square_brackets_is_a_name_like_others(settings: Settings, console: Console) -> None:
    base = settings(optimiser__epochs=1, optimiser__evaluations=1).model_dump(exclude_none=True)
    made = trainer.plan(None, base, {"prompt.template": ["{text} [/INST]", "{text}"]})
    result = trainer.sweep(made, console=console)
    assert "template={text} [/INST]" in console.file.getvalue()  # type: ignore[attr-defined]
    assert result.prompt.is_file()


def test_a_sweep_in_which_all_diverge_says_so(settings: Settings, console: Console) -> None:
    with pytest.raises(TrainingFailedError, match="every setting diverged"):
        trainer.sweep([setting for setting in _plan(settings) if "1e+30" in setting.name], console=console)


def test_who_diverges_after_all_others_were_stopped_is_replaced_by_the_next_best(
    settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, steps, interrupting = Learner.advance, 0, False

    def advanced(learner: Learner, loss: float, gradients: Sequence[Tensor | None]) -> None:
        nonlocal steps
        steps += 1
        if interrupting and steps % 31 == 0:
            signal.raise_signal(signal.SIGINT)
        late = learner.name.startswith("2.") and learner.step > learner.schedule.steps / 2
        advance(learner, math.nan if late else loss, gradients)

    monkeypatch.setattr(Learner, "advance", advanced)
    alone = trainer.sweep(_plan(settings, output=str(tmp_path / "alone")), console=console)
    assert "prompt_lr=0.05: diverged. Instead: prompt_lr=" in console.file.getvalue()  # type: ignore[attr-defined]
    rungs = json.loads((alone.folder / "sweep.json").read_text())["rungs"]
    assert rungs[-1]["kept"] == rungs[-2]["kept"]
    assert rungs[-1]["kept"] in (["prompt_lr=1e-06"], ["prompt_lr=1e-05"])
    metrics = json.loads((alone.folder / "metrics.json").read_text())
    assert {seed["curve"][-1]["epoch"] for seed in metrics["seeds"]} == {6}
    interrupting = True
    with pytest.raises(TrainingInterruptedError):
        trainer.sweep(_plan(settings), console=console)
    while not (tmp_path / "run" / "metrics.json").exists():
        with contextlib.suppress(TrainingInterruptedError):
            trainer.resume_sweep(tmp_path / "run", console=console)
    assert (tmp_path / "run" / "prompt.safetensors").read_bytes() == alone.prompt.read_bytes()


def test_settings_with_unlike_evaluations_are_compared_at_equal_shares_and_the_best_goes_to_its_end(
    settings: Settings, console: Console
) -> None:
    made = []
    for evaluations, rate in ((6, 0.05), (2, 1e-6), (3, 1e-5)):
        config = settings(
            method="p-tuning-v2", optimiser__prompt_lr=rate, optimiser__head_lr=1e-6, optimiser__epochs=2,
            optimiser__evaluations=evaluations, head__start="random",
        )  # fmt: skip
        made.append(Setting(f"evaluations={evaluations}", {"optimiser.evaluations": evaluations}, config))
    result = trainer.sweep(made, console=console)
    assert trainer.load_config(result.folder / "config.toml").optimiser.evaluations == 6
    rungs = json.loads((result.folder / "sweep.json").read_text())["rungs"]
    assert [rung["evaluations"] for rung in rungs] == [1, 2]
    (seed,) = json.loads(result.folder.joinpath("metrics.json").read_text())["seeds"]
    assert [point["epoch"] for point in seed["curve"]] == pytest.approx([n / 3 for n in range(1, 7)])


def test_a_finished_runs_folder_is_not_swept_over(settings: Settings, console: Console) -> None:
    result = trainer.train(settings(method="p-tuning-v2", optimiser__epochs=1), console=console)
    before = result.prompt.read_bytes()
    with pytest.raises(RunFolderError, match="there is a run in it already"):
        trainer.sweep(_plan(settings)[:2], console=console)
    assert result.prompt.read_bytes() == before
    assert not (result.folder / "sweep.json").exists()


def test_a_setting_that_cannot_run_is_named_before_anything_is_written(
    settings: Settings, console: Console, tmp_path: Path
) -> None:
    """Found in the step that all settings share, it would end the sweep, and that again when resumed."""
    words = {"negative": ["bad"], "positive": ["zzqx film"]}
    grid = {"head.words": [{"negative": ["bad"], "positive": ["good"]}, words]}
    base = settings(prompt__template="{text} it was {mask} .").model_dump(exclude_none=True)
    made = trainer.plan(None, base, grid)
    with pytest.raises(
        ConfigError, match=r"^setting words=.*zzqx.*: the prompt .* cannot be trained: the label word"
    ):
        trainer.sweep(made, console=console)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"^setting prompt_lr=-1: optimiser.prompt_lr: "):
        trainer.plan(None, base, {"optimiser.prompt_lr": [0.1, -1]})


def test_it_goes_on_from_another_working_folder(
    settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {f"data__{name}": f"{name}.jsonl" for name in ("train", "dev", "test")}
    with monkeypatch.context() as patch:
        patch.setattr(
            TrainingProgress, "__enter__", lambda progress: signal.raise_signal(signal.SIGINT) or progress
        )
        with pytest.raises(TrainingInterruptedError):
            trainer.sweep(_plan(settings, output="run", optimiser__epochs=1, **names)[:2], console=console)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = trainer.resume_sweep(tmp_path / "run", console=console)
    assert trainer.load_config(result.folder / "config.toml").data.train == str(tmp_path / "train.jsonl")


def test_the_head_only_reference_is_shared_on_the_same_examples_alone(
    settings: Settings, console: Console, bert: Backbone
) -> None:
    probes: dict[bytes, Reference] = {}
    for split_seed, count in ((0, 1), (0, 1), (1, 2)):
        config = settings(data__dev=None, data__split_seed=split_seed)
        Run(config, bert, console, probes=probes).prepare(StopRequest())
        assert len(probes) == count


_ONE = '{"name": "a", "values": {}, "config": {}}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[]",
        '{"settings": [], "rungs": []}',
        '{"settings": [{"name": "a"}], "rungs": []}',
        f'{{"settings": [{_ONE}]}}',
        f'{{"settings": [{_ONE}, {_ONE}], "rungs": []}}',
        f'{{"settings": [{_ONE.replace("{}", "3", 1)}], "rungs": []}}',
        f'{{"settings": [{_ONE}], "rungs": 3}}',
        f'{{"settings": [{_ONE}], "rungs": [{{}}]}}',
        f'{{"settings": [{_ONE}], "rungs": [{{"evaluations": 1, "scores": {{}}, "kept": []}}]}}',
        f'{{"settings": [{_ONE}], "rungs": [{{"evaluations": 1, "scores": {{"b": [1]}}, "kept": ["b"]}}]}}',
    ],
)
def test_a_file_that_is_no_sweeps_is_one_line(text: str, tmp_path: Path, console: Console) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(
        RunFolderError, match=r"sweep\.json: not the settings and comparisons of a sweep; put"
    ):
        trainer.resume_sweep(tmp_path, console=console)


def test_a_slip_in_a_sweeps_file_is_named(settings: Settings, tmp_path: Path, console: Console) -> None:
    """Where memory does not suffice, `rows_at_once` is to be given there."""
    config = settings().model_dump(mode="json") | {"rows_at_once": "few"}
    saved = {"settings": [{"name": "a", "values": {}, "config": config}], "rungs": []}
    (tmp_path / "sweep.json").write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=r"sweep\.json: rows_at_once: "):
        trainer.resume_sweep(tmp_path, console=console)


@given(st.integers(1, 40), st.integers(1, 20))
def test_halvings_narrow_down_to_one(settings: int, evaluations: int) -> None:
    rungs = halvings(settings, evaluations)
    assert rungs[-1] == (evaluations, 1)
    assert [at for at, _ in rungs] == sorted({at for at, _ in rungs})
    keeps = [settings, *(keep for _, keep in rungs)]
    assert all(more >= fewer >= 1 for more, fewer in itertools.pairwise(keeps))
    # Never more than the worse half is stopped, but at the end.
    assert all(2 * fewer >= more for more, fewer in itertools.pairwise(keeps[:-1]))
    if evaluations >= 2 ** math.ceil(
        math.log2(settings)
    ):  # evaluations enough: each comparison comes after twice as much training
        assert all(later >= 2 * sooner for (sooner, _), (later, _) in itertools.pairwise(rungs))


@pytest.mark.parametrize("best_first", [True, False])
def test_settings_may_start_from_different_prompts(
    settings: Settings, console: Console, tmp_path: Path, best_first: bool
) -> None:
    """The winner's start is compared when its own run begins, and every start when the sweep goes on."""
    starts = []
    for seed in (0, 1):
        config = settings(output=str(tmp_path / f"start-{seed}"), seeds=(seed,), optimiser__epochs=1)
        starts.append(trainer.train(config, console=console).folder)
    values = settings(
        prompt__num_virtual_tokens=None, optimiser__evaluations=2, optimiser__epochs=2
    ).model_dump(mode="json", exclude_none=True)
    points = trainer.plan(None, values, {"prompt.init_from": [str(start) for start in starts]})

    def best(learner: Learner) -> float:
        return float(learner.name.startswith("1.") == best_first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.successive_halving._best", best)
        result = trainer.sweep(points, console=console)
    config = trainer.load_config(result.folder / "config.toml")
    assert config.prompt.init_from == str(starts[0 if best_first else 1])
    (result.folder / "metrics.json").unlink()
    shutil.copy(
        starts[0] / "seeds" / "seed-0.learned.safetensors", starts[1] / "seeds" / "seed-1.learned.safetensors"
    )
    with pytest.raises(RunFolderError, match=r"what prompt\.init_from leads to changed since"):
        trainer.resume_sweep(result.folder, console=console)


def test_the_grid_is_every_combination(tmp_path: Path) -> None:
    base = {"task_id": "t", "output": str(tmp_path), "data.train": "x.jsonl"}
    made = trainer.plan(None, base, {"optimiser.prompt_lr": [0.1, 0.2], "prompt.num_virtual_tokens": [4, 8]})
    assert [setting.name for setting in made] == [
        f"prompt_lr={rate}, num_virtual_tokens={count}" for rate in (0.1, 0.2) for count in (4, 8)
    ]
    assert made[2].config.optimiser.prompt_lr == 0.2
    for grid, says in (
        ({}, "at least one --grid"),
        ({"method": ["p-tuning-v2", "head-only"]}, "trains no prompt"),
        ({"optimiser.prompt_lr": [0.1, 0.1]}, "twice"),
        ({"optimiser.speed": [1]}, "optimiser.speed: unknown setting"),
        ({"dtype": ["float32", "bfloat16"]}, "--grid dtype: a sweep tries values of method"),
        ({"data.split_seed": [0, 1]}, "give data.split_seed one value"),
    ):
        with pytest.raises(ConfigError, match=says):
            trainer.plan(None, base, grid)  # type: ignore[arg-type]
