"""A prompt learned by us and by PEFT on the same backbone, data, batches and steps: seconds to a dev accuracy.

Seconds are of training alone: loading and dev evaluations are left out on both sides. Our tokenising is counted, and
so is the linear probe that our head starts from; PEFT's tokenising is not, and the probe where it is given one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich.console import Console

from backbone import load_backbone
from loadtest.training.data import BATCH, TOKENS, Curve, Plan, configuration
from loadtest.training.peft_side import Probe
from trainer.deterministic import deterministic, one_core
from trainer.interrupt import StopRequest
from trainer.mixture import step
from trainer.run import Run


def ours(plan: Plan, method: str) -> tuple[Curve, Probe]:
    """Our curve, with default settings but for what is shared; and the probe that its head started from."""
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(
            Path(folder), plan.data, train_lines=plan.train_lines, dev_lines=plan.dev_lines, method=method,
            seeds=[plan.seed], prompt__num_virtual_tokens=TOKENS, optimiser__batch_size=BATCH,
            optimiser__epochs=plan.epochs, optimiser__evaluations=plan.evaluations, optimiser__patience=1000,
        )  # fmt: skip
        run = Run(config, load_backbone(), Console(quiet=True))
        begin = time.perf_counter()
        run.prepare(StopRequest())
        probe = Probe(run.probe, spent := time.perf_counter() - begin)
        (learner,) = run.learners()
        curve: Curve = []
        with deterministic(), one_core():  # as `trainer.mixture` does
            while learner.step < learner.schedule.steps:
                begin = time.perf_counter()
                step(run.backbone, [learner])
                spent += time.perf_counter() - begin
                if learner.evaluates_now:
                    point = learner.evaluate()
                    assert point is not None, learner.failure
                    curve.append((spent, point.dev_accuracy))
    return curve, probe


def seconds_to(curve: Curve, accuracy: float) -> float | None:
    """When a curve first reached an accuracy; None if it never did."""
    return next((seconds for seconds, reached in curve if reached >= accuracy), None)
