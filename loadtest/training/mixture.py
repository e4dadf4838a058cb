"""Many prompts in one batch against the same prompts one after another: whole trainings, with the same steps and rows.

What is measured is what `promptmux train` runs: steps, word dropout, evaluations on dev and saved states included. What
both sides need once (the linear probe, tokenising) is left out.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from backbone import Backbone
from loadtest.bench.rounds import alternate
from loadtest.training.data import configuration
from trainer.checkpoints import Checkpoints
from trainer.interrupt import StopRequest
from trainer.learner import Learner
from trainer.listeners import Listeners
from trainer.mixture import train_together
from trainer.run import Run

DEV_LINES, EVALUATIONS, TOKENS = 64, 2, 20


def measure(
    backbone: Backbone,
    data: Path,
    *,
    method: str,
    prompts: int,
    batch_size: int,
    steps: int,
    rounds: int,
    console: Console,
) -> dict[str, Any]:
    """Seconds of each round, and how many times as fast the mixture was as the sum of the solo runs."""
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), itertools.count()
        config = configuration(
            folder, data, train_lines=steps * batch_size, dev_lines=DEV_LINES, method=method,
            seeds=list(range(prompts)), optimiser__batch_size=batch_size, optimiser__epochs=1,
            optimiser__evaluations=EVALUATIONS, prompt__num_virtual_tokens=TOKENS,
        )  # fmt: skip
        run = Run(config, backbone, Console(quiet=True))
        run.prepare(StopRequest())

        def seconds(groups: Sequence[Sequence[Learner]]) -> float:
            """Train each group by itself, one after another."""
            _wait(backbone)
            begin = time.perf_counter()
            for group in groups:
                states = Checkpoints(folder / f"state-{next(count)}")
                for learner in train_together(
                    backbone,
                    group,
                    checkpoints=states,
                    listener=Listeners(),
                    rows_at_once=prompts * batch_size,
                ):
                    assert learner.failure is None, learner.failure
                    assert learner.step == learner.schedule.steps
            _wait(backbone)
            return time.perf_counter() - begin

        sides = {
            "mixed": lambda: seconds([list(run.learners())]),
            "solo": lambda: seconds([[learner] for learner in run.learners()]),
        }
        title = f"{data.name}, {method}, {prompts} prompts of batch {batch_size}"
        done = alternate(sides, rounds, console=console, title=title)
    return {
        "data": data.name,
        "method": method,
        "prompts": prompts,
        "batch_size": batch_size,
        "steps": steps,
        "seconds": done.seconds,
        "ratios": done.ratios("mixed", "solo"),
        "times as fast": done.ratio("mixed", "solo"),
    }


def _wait(backbone: Backbone) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
