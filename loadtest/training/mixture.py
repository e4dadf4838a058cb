"""Many prompts in one batch against the same prompts one after another: the same steps, the same rows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from backbone import Backbone
from loadtest.bench.rounds import alternate
from loadtest.training.data import configuration
from trainer.deterministic import deterministic
from trainer.interrupt import StopRequest
from trainer.learner import Learner
from trainer.mixture import step
from trainer.run import Run

EXAMPLES = 512


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
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(
            Path(folder), data, train_lines=EXAMPLES, dev_lines=64, method=method, seeds=list(range(prompts)),
            optimiser__batch_size=batch_size, optimiser__word_dropout=0.0, prompt__num_virtual_tokens=20,
        )  # fmt: skip
        run = Run(config, backbone, Console(quiet=True))
        run.prepare(StopRequest())

        def mixed() -> float:
            learners = list(run.learners())
            return _seconds(backbone, [learners], steps)

        def solo() -> float:
            return _seconds(backbone, [[learner] for learner in run.learners()], steps)

        title = f"{method}, {prompts} prompts of batch {batch_size}"
        done = alternate({"mixed": mixed, "solo": solo}, rounds, console=console, title=title)
    return {
        "method": method,
        "prompts": prompts,
        "batch_size": batch_size,
        "steps": steps,
        "seconds": done.seconds,
        "ratios": done.ratios("mixed", "solo"),
        "times as fast": done.ratio("mixed", "solo"),
    }


def _seconds(backbone: Backbone, groups: list[list[Learner]], steps: int) -> float:
    """Train each group by itself, one after another."""
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    with deterministic():
        for group in groups:
            for _ in range(steps):
                step(backbone, group)
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
