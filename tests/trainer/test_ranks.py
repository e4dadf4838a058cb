"""Several processes of one run: the same prompt as one, one decision for all, and nobody waits for the dead."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import trainer
from backbone import Backbone, BackboneError
from prompt_store import decode_prompt
from tests.trainer.conftest import PROBE_ITERATIONS
from tests.trainer.rank_processes import Started, start
from trainer import ConfigError, TrainConfig
from trainer.listeners import Listeners
from trainer.parcel import pack, unpack
from trainer.processes import own_device
from trainer.ranks import ALONE, Ranks, launched

Settings = Callable[..., TrainConfig]
Begin = Callable[..., Started]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start processes that end with the test."""
    running: list[Started] = []

    def make(*arguments: Any, **options: Any) -> Started:
        running.append(start(*arguments, **options))
        return running[-1]

    yield make
    for started in running:
        started.stop()


class Lengths:
    """Work whose result says who did what."""

    def __init__(
        self, lengths: list[int], fails_at: int | None = None, kind: type[Exception] = ValueError
    ) -> None:
        self.lengths, self._fails_at, self._kind = lengths, fails_at, kind

    def run(self, backbone: Backbone, own: list[int]) -> tuple[int, torch.Tensor]:
        if self._fails_at in own:
            raise self._kind(f"row {self._fails_at} is too much\nand more")
        return os.getpid(), torch.tensor([float(self.lengths[at]) for at in own])


def _train(ranks: Ranks, config: TrainConfig, *, at_step: int = 0, then: str = "") -> str:
    """Train as `quick_runs` does; at a step, `then` happens."""
    import trainer.head_only
    import trainer.outcome

    trainer.outcome.write_curves = lambda *_: None
    trainer.head_only.MAX_ITERATIONS = PROBE_ITERATIONS
    if then:
        steps, stepped = 0, Listeners.stepped

        def watched(self: Listeners, learner: Any, loss: float) -> None:
            nonlocal steps
            stepped(self, learner, loss)
            steps += 1
            if steps == at_step:
                Path(then).touch()
                while Path(then).exists():
                    time.sleep(0.01)

        Listeners.stepped = watched  # type: ignore[method-assign]
    return str(trainer.train(config, console=Console(file=io.StringIO()), ranks=ranks).prompt)


def _share(ranks: Ranks, config: TrainConfig, *works: Lengths) -> list[object]:
    backbone = ranks.load(config.backbone, device="cpu", dtype="float32")
    found = [ranks.share(backbone, work) for work in works]
    return [[(own, (pid, values.tolist())) for own, (pid, values) in parts] for parts in found]


def _too_large(ranks: Ranks, config: TrainConfig, work: Lengths) -> str:
    try:
        _share(ranks, config, work)
    except torch.OutOfMemoryError as error:
        return str(error)
    return "enough"


def _wait(path: Path) -> None:
    for _ in range(12_000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


def _same_prompt(one: Path, other: Path) -> None:
    ours, theirs = decode_prompt(one.read_bytes()), decode_prompt(other.read_bytes())
    assert ours.manifest.training["dev"] == theirs.manifest.training["dev"]
    assert set(ours.tensors) == set(theirs.tensors)
    for name, tensor in ours.tensors.items():  # stored in half precision
        np.testing.assert_allclose(
            np.asarray(tensor, np.float64), np.asarray(theirs.tensors[name], np.float64), rtol=2e-2, atol=2e-3
        )


@pytest.mark.usefixtures("quick_runs")
def test_two_processes_learn_what_one_learns(
    settings: Settings, begin: Begin, console: Console, tmp_path: Path
) -> None:
    config = settings(seeds=(0, 1), method="p-tuning-v2", output=str(tmp_path / "two"), optimiser__epochs=2)
    started = begin(_train, config)
    alone = trainer.train(config.model_copy(update={"output": str(tmp_path / "one")}), console=console)
    prompt = Path(started.outcome(0))
    assert started.outcome(1) == "helped"
    _same_prompt(prompt, alone.prompt)
    ours, theirs = (json.loads((p.parent / "metrics.json").read_text()) for p in (prompt, alone.prompt))
    assert ours["summary"] == theirs["summary"]
    for one, other in zip(ours["seeds"], theirs["seeds"], strict=True):
        assert [p["dev_accuracy"] for p in one["curve"]] == [p["dev_accuracy"] for p in other["curve"]]
        assert [p["loss"] for p in one["curve"]] == pytest.approx(
            [p["loss"] for p in other["curve"]], rel=1e-4
        )
    # Two processes did share the work: where rows are added in another order, the last bits differ.
    assert [p["loss"] for p in ours["seeds"][0]["curve"]] != [p["loss"] for p in theirs["seeds"][0]["curve"]]


def test_rows_are_divided_by_their_lengths_and_come_back_in_order(settings: Settings, begin: Begin) -> None:
    works = [Lengths([9, 5, 4, 4]), Lengths([7, 3]), Lengths([7]), Lengths([])]
    started = begin(_share, settings(), *works, count=3)
    four, two, one, none = started.outcome(0)
    assert [own for own, _ in four] == [[0], [1], [2, 3]]
    assert [own for own, _ in two] == [[0], [1]]
    assert [own for own, _ in one] == [[0]]
    assert none == []
    assert [started.outcome(rank) for rank in (1, 2)] == ["helped", "helped"]
    for parts, work in ((four, works[0]), (two, works[1])):
        assert len({pid for _, (pid, _) in parts}) == len(parts)
        for own, (_, values) in parts:
            assert values == [work.lengths[at] for at in own]


@pytest.mark.parametrize("row", [0, 1])
def test_what_fails_in_one_process_is_one_line_and_ends_all(
    settings: Settings, begin: Begin, row: int
) -> None:
    started = begin(_share, settings(), Lengths([9, 5], fails_at=row))
    if row == 1:
        assert started.outcome(0) == ("RanksError", "process 1: row 1 is too much")
    else:  # its own failure is as it would be in one process: a defect, which keeps its traceback
        started.processes[0].join(60)
        assert started.processes[0].exitcode == 1
    assert started.outcome(1) == "helped"


def test_no_memory_in_another_process_is_no_memory(settings: Settings, begin: Begin) -> None:
    """Who knows which rows took it says what to do, as in one process."""
    work = Lengths([9, 5], fails_at=1, kind=torch.OutOfMemoryError)
    assert begin(_too_large, settings(), work).outcome(0) == "process 1: row 1 is too much"


def test_a_slip_in_the_data_ends_all(settings: Settings, begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "fine"}\n')
    started = begin(_train, settings())
    kind, words = started.outcome(0)
    assert kind == "DataError"
    assert "train.jsonl:1" in words or "train.jsonl, line 1" in words
    assert started.outcome(1) == "helped"


@pytest.mark.usefixtures("quick_runs")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_process_saves_and_ends_all_and_one_process_goes_on(
    settings: Settings, begin: Begin, console: Console, tmp_path: Path, rank: int
) -> None:
    config = settings(seeds=(0, 1), optimiser__epochs=2)
    held = tmp_path / "held"
    started = begin(_interrupted, config, str(held))
    _wait(held)
    os.kill(started.processes[rank].pid or 0, signal.SIGTERM)
    held.unlink()
    kind, words = started.outcome(0)
    assert kind == "TrainingInterruptedError"
    assert "promptmux train --resume" in words
    assert started.outcome(1) == "helped"
    result = trainer.resume(Path(config.output), console=console)
    alone = trainer.train(config.model_copy(update={"output": str(tmp_path / "one")}), console=console)
    _same_prompt(result.prompt, alone.prompt)


def _interrupted(ranks: Ranks, config: TrainConfig, held: str) -> str:
    return _train(ranks, config, at_step=9, then=held)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_is_not_waited_for(
    settings: Settings, begin: Begin, tmp_path: Path, how: signal.Signals
) -> None:
    held = tmp_path / "held"
    started = begin(_interrupted, settings(), str(held), answer_within=timedelta(seconds=8))
    _wait(held)
    os.kill(started.processes[1].pid or 0, how)
    held.unlink()
    kind, words = started.outcome(0)
    assert kind == "RanksError"
    assert "another process of this run is gone or does not answer" in words
    assert "--resume" in words


def test_helpers_end_when_the_first_process_is_gone(settings: Settings, begin: Begin, tmp_path: Path) -> None:
    held = tmp_path / "held"
    started = begin(_interrupted, settings(), str(held))
    _wait(held)
    started.processes[0].kill()
    kind, words = started.outcome(1)
    assert kind == "RanksError"
    assert "process 1: the first process of this run is gone" in words


def test_a_launchers_environment_is_read_or_refused() -> None:
    whole = {
        "WORLD_SIZE": "4",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "29500",
    }
    assert launched(whole) == (3, 4, 1, "10.0.0.7", 29500)
    assert launched({}) is None
    assert launched(whole | {"WORLD_SIZE": "1"}) is None
    assert trainer.join({}) is ALONE
    for missing in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        with pytest.raises(ConfigError, match=f"{missing}.*torchrun"):
            launched({key: value for key, value in whole.items() if key != missing})
    with pytest.raises(ConfigError, match="torchrun"):
        launched(whole | {"RANK": "first"})


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [own_device(name, 1) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
    with pytest.raises(BackboneError, match="more processes than GPUs"):
        own_device("auto", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("auto", 5) == "auto"


def test_parcels_bring_what_was_packed() -> None:
    graph = torch.arange(3.0, requires_grad=True) * 2
    tensors = {
        "bool": torch.tensor([True, False, True]), "half": torch.tensor([[1.5], [2.5]], dtype=torch.float16),
        "double": torch.tensor(0.1, dtype=torch.float64), "none": torch.empty(0, 4), "graph": graph,
        "turned": torch.arange(6).reshape(2, 3).T,
    }  # fmt: skip
    value, again = {"words": ("one", 2, None), "tensors": tensors}, tensors["double"]
    found, same = unpack(pack((value, again)), torch.device("cpu"))
    assert found["words"] == value["words"]
    for name, tensor in tensors.items():
        assert found["tensors"][name].dtype == tensor.dtype
        assert torch.equal(found["tensors"][name], tensor)
    assert same is found["tensors"]["double"]
    assert not found["tensors"]["graph"].requires_grad
