"""A prompt learned by us and by PEFT on the same backbone, data, batches and steps: seconds to a dev accuracy.

PEFT is run as its users run it: the stock classifier, dynamic padding, AdamW with the same warm-up and decay, in
float32 or under bfloat16 autocast. Its learning rate is the best of those given, by its own final dev accuracy.
Seconds are of training alone: loading and tokenising are left out on both sides, dev evaluations too; the linear probe
that our head starts from is counted.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from backbone import load_backbone
from backbone.loader import locate
from loadtest.training.data import configuration
from trainer.data import load_examples
from trainer.deterministic import deterministic, one_core
from trainer.interrupt import StopRequest
from trainer.mixture import step
from trainer.run import Run
from trainer.schedule import Schedule, batches
from trainer.scores import one_hot

TOKENS, BATCH = 20, 32
Curve = list[tuple[float, float]]  # seconds of training, dev accuracy


@dataclass(frozen=True)
class Plan:
    """What both sides share."""

    data: Path
    train_lines: int | None
    dev_lines: int | None
    epochs: int
    evaluations: int
    seed: int


def ours(plan: Plan, method: str) -> Curve:
    """Our curve, with default settings but for what is shared."""
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(
            Path(folder), plan.data, train_lines=plan.train_lines, dev_lines=plan.dev_lines, method=method,
            seeds=[plan.seed], prompt__num_virtual_tokens=TOKENS, optimiser__batch_size=BATCH,
            optimiser__epochs=plan.epochs, optimiser__evaluations=plan.evaluations, optimiser__patience=1000,
            optimiser__word_dropout=0.0,
        )  # fmt: skip
        run = Run(config, load_backbone(), Console(quiet=True))
        begin = time.perf_counter()
        run.prepare(StopRequest())
        spent = time.perf_counter() - begin
        (learner,) = run.learners()
        curve: Curve = []
        with deterministic(), one_core():  # as `trainer.mixture` does
            while learner.step < learner.schedule.steps:
                begin = time.perf_counter()
                step(run.backbone, [learner])
                spent += time.perf_counter() - begin
                if learner.evaluates_now:
                    curve.append((spent, learner.evaluate().dev_accuracy))
    return curve


def peft(plan: Plan, kind: str, *, lr: float, autocast: bool) -> Curve:
    """PEFT's curve: `kind` is PREFIX_TUNING or PROMPT_TUNING."""
    import peft as library
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        config = configuration(
            Path(folder), plan.data, train_lines=plan.train_lines, dev_lines=plan.dev_lines
        )
        data = load_examples(config)
    torch.manual_seed(plan.seed)
    place = str(locate("minilm"))
    tokenizer = AutoTokenizer.from_pretrained(place)
    stock: Any = AutoModelForSequenceClassification.from_pretrained(place, num_labels=len(data.labels))
    kinds: Any = {"PREFIX_TUNING": library.PrefixTuningConfig, "PROMPT_TUNING": library.PromptTuningConfig}
    model: Any = library.get_peft_model(stock, kinds[kind](task_type="SEQ_CLS", num_virtual_tokens=TOKENS))
    encoded = {
        name: tokenizer([e.text for e in examples], [e.text_pair for e in examples] if data.has_pairs else None,
                        truncation=True, max_length=256)["input_ids"]
        for name, examples in (("train", data.train), ("dev", data.dev))
    }  # fmt: skip
    targets = {
        name: torch.from_numpy(one_hot([e.labels for e in examples], data.labels)).argmax(dim=1)
        for name, examples in (("train", data.train), ("dev", data.dev))
    }
    settings = config.optimiser.model_copy(
        update={"batch_size": BATCH, "epochs": plan.epochs, "evaluations": plan.evaluations}
    )
    schedule = Schedule.of(settings, len(data.train))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    lengths = [len(ids) for ids in encoded["train"]]
    curve: Curve = []
    spent = 0.0

    def logits(name: str, batch: Sequence[int]) -> torch.Tensor:
        padded = tokenizer.pad({"input_ids": [encoded[name][at] for at in batch]}, return_tensors="pt")
        context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
        with context:
            return model(**padded).logits.float()  # type: ignore[no-any-return]

    for number in range(schedule.steps):
        begin = time.perf_counter()
        epoch, nth = divmod(number, schedule.steps_per_epoch)
        batch = batches(lengths, BATCH, plan.seed, epoch)[nth]
        model.train()
        value = torch.nn.functional.cross_entropy(logits("train", batch), targets["train"][batch])
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.param_groups[0]["lr"] = lr * schedule.factor(number)
        optimiser.step()
        spent += time.perf_counter() - begin
        if number + 1 in schedule.evaluate_at:
            model.eval()
            order = np.argsort([len(ids) for ids in encoded["dev"]], kind="stable").tolist()
            hits = 0
            with torch.no_grad():
                for at in range(0, len(order), 128):
                    some = order[at : at + 128]
                    hits += int((logits("dev", some).argmax(dim=1) == targets["dev"][some]).sum())
            curve.append((spent, hits / len(order)))
    return curve


def seconds_to(curve: Curve, accuracy: float) -> float | None:
    """When a curve first reached an accuracy; None if it never did."""
    return next((seconds for seconds, reached in curve if reached >= accuracy), None)
