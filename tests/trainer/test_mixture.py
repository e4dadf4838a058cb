"""Each prompt trained among others is the prompt that it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

import trainer
from backbone import Backbone
from tests.backbone import families, seq2seq
from tests.trainer.conftest import Divided, separable, write_jsonl
from trainer import TrainConfig, TrainingFailedError
from trainer.checkpoints import Checkpoints
from trainer.evaluation import loss
from trainer.grid import Setting
from trainer.interrupt import StopRequest
from trainer.learner import Learner
from trainer.mixture import step, train_together
from trainer.progress import TrainingProgress
from trainer.report import Point
from trainer.run import Run

Settings = Callable[..., TrainConfig]
pytestmark = pytest.mark.usefixtures("quick_runs")


class Watch:
    """A listener that keeps who was there at each step."""

    def __init__(self) -> None:
        self.present: list[str] = []
        self.company: list[tuple[str, ...]] = []
        self.losses: list[float] = []

    def admitted(self, learner: Learner) -> None:
        self.present.append(learner.name)

    def stepped(self, learner: Learner, loss: float) -> None:
        self.losses.append(loss)
        if learner.name == self.present[0]:
            self.company.append(tuple(self.present))

    def evaluated(self, learner: Learner, point: Point) -> None:
        assert 0 <= point.dev_accuracy <= 1

    def left(self, learner: Learner) -> None:
        self.present.remove(learner.name)


def _learners(backbone: Backbone, configs: Sequence[TrainConfig], console: Console) -> list[Learner]:
    made = []
    for at, config in enumerate(configs):
        run = Run(config, backbone, console, prefix=f"{at}.")
        run.prepare(StopRequest())
        made += run.learners()
    return made


def _kinds(settings: Settings, tmp_path: Path) -> list[TrainConfig]:
    """Prompts that differ in everything: kind, length, place, head, labels, learning rate, batch, word dropout."""
    three = [
        {"text": row["text"], "label": ("a", "b", "c")[at % 3]}
        for at, row in enumerate(separable(60, seed=5))
    ]
    several = [
        {"text": row["text"], "labels": [["x"], ["x", "y"], []][at % 3]} for at, row in enumerate(three)
    ]
    others = str(write_jsonl(tmp_path / "three.jsonl", three))
    many = str(write_jsonl(tmp_path / "many.jsonl", several))
    apart = {"data__dev": None, "data__test": None}

    def longer(**given: object) -> TrainConfig:
        return settings(optimiser__epochs=20, **given)

    return [
        longer(method="prompt-tuning", seeds=(0, 1)),
        longer(method="p-tuning-v2", prompt__num_virtual_tokens=3, optimiser__prompt_lr=0.2),
        longer(method="p-tuning-v2", optimiser__batch_size=5, optimiser__word_dropout=0.4),
        longer(method="prompt-tuning", prompt__template="{text} so it was {soft:2} {mask} .",
                 prompt__num_virtual_tokens=2, head__words={"negative": ["bad"], "positive": ["good"]}),
        longer(method="prompt-tuning", data__train=others, **apart),
        longer(method="p-tuning-v2", data__train=many, multi_label=True, labels=("x", "y"), **apart),
        *_networks(longer),
    ]  # fmt: skip


def _networks(longer: Callable[..., TrainConfig]) -> list[TrainConfig]:
    """Prompts that are made by networks, two of a kind among them."""
    own = {"optimiser__prompt_lr": 0.01}
    return [
        longer(method="p-tuning", seeds=(0, 1), prompt__encoder_hidden_size=3, **own),
        longer(method="p-tuning", prompt__reparameterisation="mlp", prompt__encoder_hidden_size=6, **own),
        longer(method="prefix-tuning", seeds=(0, 1), prompt__encoder_hidden_size=7, **own),
        longer(method="prompt-tuning", prompt__reparameterisation="residual", **own),
    ]


def _advance(backbone: Backbone, learners: Sequence[Learner], steps: int) -> None:
    for _ in range(steps):
        step(backbone, learners)


@pytest.mark.parametrize(("family", "steps"), [("bert", 50), ("gpt2", 15), ("t5", 15)])
def test_mixed_is_solo_in_float64(
    family: str, steps: int, settings: Settings, console: Console, tmp_path: Path
) -> None:
    """So many steps with the same data order: the tensors differ by rounding alone."""
    made = seq2seq if family == "t5" else families
    backbone, configs = made.tiny(family, "float64"), _kinds(settings, tmp_path)
    if family == "t5":
        configs = [settings(optimiser__epochs=20, method="prompt-tuning"), configs[3], *_networks(
            lambda **given: settings(optimiser__epochs=20, **given)
        )]  # fmt: skip
        for at, decoder in ((4, "copy"), (5, "start")):
            prompt = configs[at].prompt.model_copy(update={"decoder": decoder})
            configs[at] = configs[at].model_copy(update={"prompt": prompt})
    configs = [c.model_copy(update={"backbone": str(made.checkpoint(family))}) for c in configs]
    if family == "gpt2":  # predicts the next token: its mask is the last part
        words = configs[3].prompt.model_copy(update={"template": "{text} so it was {soft:2} {mask}"})
        configs[3] = configs[3].model_copy(update={"prompt": words})
    mixed, alone = _learners(backbone, configs, console), _learners(backbone, configs, console)
    _advance(backbone, mixed, steps)
    for one, other in zip(mixed, alone, strict=True):
        begun = {name: tensor.clone() for name, tensor in other.parameters.items()}
        _advance(backbone, [other], steps)
        for name, tensor in one.parameters.items():
            assert tensor.dtype is torch.float64
            assert (tensor - begun[name]).abs().max() > 1e-5, f"{name} of {one.name} has not learned"
            assert (tensor - other.parameters[name]).abs().max() <= 1e-8, f"{name} of {one.name}"


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_gradients_of_one_step_are_those_of_each_alone(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    processes: int,
) -> None:  # fmt: skip
    """float32, against each prompt's own loss differentiated by itself, on one core and without the engine; also where
    processes divide the rows.
    """
    learners = _learners(bert, _kinds(settings, tmp_path), console)
    step(bert, learners)  # a residual network's weights have a gradient only from the second step on
    expected: list[tuple[Tensor, ...]] = []
    for learner in learners:
        (share,) = learner.shares()
        (tensors,) = learner.folded()
        prompt = bert.bind(share.task.manifest, tensors)
        scores = torch.stack(bert.forward(share.rows, [prompt] * len(share.rows)))
        value = loss(scores, share.targets, multi_label=share.task.manifest.multi_label)
        expected.append(torch.autograd.grad(value, list(learner.parameters.values())))
    seen: list[Sequence[Tensor | None]] = []
    monkeypatch.setattr(Learner, "advance", lambda _, __, gradients: seen.append(gradients))
    step(bert, learners, Divided(processes))
    for learner, own, mixed in zip(learners, expected, seen, strict=True):
        for name, one, other in zip(learner.parameters, own, mixed, strict=True):
            assert other is not None
            assert one.abs().max() > (1e-6 if name.startswith("reparam.") else 1e-4), (
                f"{name} of {learner.name}"
            )
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5, msg=f"{name} of {learner.name}")


def test_one_that_diverges_harms_nobody(bert: Backbone, settings: Settings, console: Console) -> None:
    config = settings(seeds=(0, 1, 2))
    learners, alone = _learners(bert, [config], console), _learners(bert, [config], console)
    with torch.no_grad():
        learners[1].parameters["soft_prompt"].fill_(torch.nan)
    losses = step(bert, learners)
    assert learners[1].finished
    assert "use a smaller optimiser.prompt_lr" in str(learners[1].failure)
    for at in (0, 2):
        assert step(bert, [alone[at]])[0] == pytest.approx(losses[at], rel=1e-5)
        for name, tensor in learners[at].parameters.items():
            torch.testing.assert_close(tensor, alone[at].parameters[name], rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_finite_makes_no_step(
    bert: Backbone, settings: Settings, console: Console
) -> None:
    (learner,) = _learners(bert, [settings()], console)
    before = {name: tensor.detach().clone() for name, tensor in learner.parameters.items()}
    learner.advance(0.5, [torch.full_like(tensor, torch.inf) for tensor in before.values()])
    assert "step 1: the gradient's norm is inf" in str(learner.failure)
    assert learner.step == 0
    for name, tensor in learner.parameters.items():
        assert torch.equal(tensor, before[name]), name


def test_scores_that_are_no_numbers_are_no_scores(
    bert: Backbone, settings: Settings, console: Console
) -> None:
    (learner,) = _learners(bert, [settings()], console)
    assert learner.evaluate() is not None
    with torch.no_grad():
        for tensor in learner._average.values():
            tensor.fill_(torch.nan)
    assert learner.evaluate() is None
    assert "a score on dev is no finite number" in str(learner.failure)
    assert len(learner.points) == 1
    assert all(bool(tensor.isfinite().all()) for tensor in learner.learned().raw.values())


def test_a_finished_prompt_leaves_its_rows_to_the_next(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    short, long = settings(optimiser__epochs=1), settings(optimiser__epochs=2, seeds=(1, 2))
    watch = Watch()
    ended = [
        learner.name
        for learner in train_together(
            bert, _learners(bert, [short, long, short], console), checkpoints=Checkpoints(tmp_path / "state"),
            listener=watch, rows_at_once=40,
        )
    ]  # fmt: skip
    assert ended == ["0.seed-0", "1.seed-1", "1.seed-2", "2.seed-0"]
    together = [("0.seed-0", "1.seed-1"), ("1.seed-1", "1.seed-2"), ("1.seed-2", "2.seed-0")]
    assert watch.company == [pair for pair in together for _ in range(6)]
    assert watch.present == []


def test_stopped_and_restarted_anywhere_the_company_is_the_same(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path
) -> None:
    """Learners of different lengths, stopped every few steps: the last bits are those of a run left alone."""
    configs = [settings(optimiser__epochs=epochs, seeds=(epochs,)) for epochs in (1, 3, 2)]

    def run(folder: str, every: int) -> list[dict[str, Tensor]]:
        done: dict[str, dict[str, Tensor]] = {}
        while len(done) < 3:
            calls = 0

            def stop() -> bool:
                nonlocal calls
                calls += 1
                return calls > every

            for learner in train_together(
                bert, _learners(bert, configs, console), checkpoints=Checkpoints(tmp_path / folder),
                listener=Watch(), stop=stop, rows_at_once=40,
            ):  # fmt: skip
                done[learner.name] = learner.learned().raw
        return [done[name] for name in sorted(done)]

    for one, other in zip(run("alone", 1000), run("stopped", 5), strict=True):
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name])


@pytest.mark.parametrize("swept", [False, True])
def test_how_many_rows_a_step_has_is_a_setting_of_train_and_sweep_too(
    swept: bool, settings: Settings, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    for name in ("admitted", "stepped", "evaluated", "left"):
        monkeypatch.setattr(TrainingProgress, name, lambda _, *told, name=name: getattr(watch, name)(*told))
    short = {"seeds": (0, 1), "optimiser__epochs": 1, "optimiser__evaluations": 1, "rows_at_once": 16}
    config = settings(**short)
    if swept:
        trainer.sweep([Setting("one", {}, config)], console=console)
    else:
        trainer.train(config, console=console)
    assert len(watch.losses) == 12
    assert {len(company) for company in watch.company} == {1}


def test_a_device_without_memory_is_one_line_that_says_what_to_set(
    bert: Backbone, settings: Settings, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> list[float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")

    monkeypatch.setattr("trainer.mixture.step", full)
    for seeds, says in (
        (
            (0, 1),
            r"^cpu has no memory for a step of 32 rows: give rows_at_once less, such as --set rows_at_once=16",
        ),
        ((0,), r"step of 16 rows: .* smaller optimiser\.batch_size"),
    ):
        learners = _learners(bert, [settings(seeds=seeds)], console)
        with pytest.raises(TrainingFailedError, match=says) as caught:
            list(
                train_together(bert, learners, checkpoints=Checkpoints(tmp_path / "state"), listener=Watch())
            )
        assert "\n" not in str(caught.value)
