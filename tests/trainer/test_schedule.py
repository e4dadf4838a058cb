from __future__ import annotations

import pytest

from trainer.config import OptimiserConfig
from trainer.schedule import Schedule, batches


def _settings(**values: object) -> OptimiserConfig:
    return OptimiserConfig.model_validate({"epochs": 4, "batch_size": 8, **values})


def test_every_example_once_in_an_epoch_and_lengths_together() -> None:
    lengths = [at % 23 + 1 for at in range(101)]
    epoch = batches(lengths, 8, seed=0, epoch=0)
    assert sorted(at for batch in epoch for at in batch) == list(range(101))
    spread = [max(lengths[at] for at in batch) - min(lengths[at] for at in batch) for batch in epoch]
    assert max(spread) <= 4
    assert epoch == batches(lengths, 8, seed=0, epoch=0)
    assert epoch != batches(lengths, 8, seed=0, epoch=1)
    assert epoch != batches(lengths, 8, seed=1, epoch=0)


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    schedule = Schedule.of(_settings(warmup=0.1), examples=80)
    factors = [schedule.factor(step) for step in range(schedule.steps)]
    assert (schedule.steps, schedule.warmup) == (40, 4)
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[-1] == pytest.approx(1 / 36)
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_the_last_step_is_always_evaluated() -> None:
    for evaluations in (1, 3, 7, 1000):
        schedule = Schedule.of(_settings(evaluations=evaluations), examples=81)
        assert schedule.steps in schedule.evaluate_at
        assert len(schedule.evaluate_at) == min(evaluations, schedule.steps)
