"""Owns the training of several tasks as one: they share tensors, and each brings a batch to every step.

    share = "prompt"     one prompt, a head each; every task then goes on from it   Liu et al. 2022, section 3.3
    share = "factored"   shared prompt times each task's low-rank factor (MPT)      Wang et al. 2023, section 3.1

What is shared ends with the training: each task has a plain prompt of its own. Knows runs and learners; knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.init import Initialiser
from trainer.label_texts import starting_texts
from trainer.learner import Learned, Learner, Task
from trainer.many_config import Share
from trainer.methods import group_of, kind_of
from trainer.multitask import Factored, MultitaskParameterisation, Shared
from trainer.run import Run

# Begins the names of the learners of all tasks; no task id begins so.
PREFIX = "_joint."


def parameterisation_of(share: Share, rank: int) -> MultitaskParameterisation:
    """What is shared, and how."""
    return Shared() if share == "prompt" else Factored(rank)


def check_together(configs: Sequence[TrainConfig]) -> None:
    """Refuse tasks that cannot share a prompt. Raises ConfigError with the task and the reason."""
    first = configs[0]
    if kind_of(first.method) is None:
        raise ConfigError(f"share: method = {first.method!r} trains no prompt, so there is nothing to share")
    for config in configs[1:]:
        pairs: dict[str, tuple[object, object]] = {
            "method": (config.method, first.method),
            "seeds": (config.seeds, first.seeds),
            "prompt.num_virtual_tokens": (config.prompt.num_virtual_tokens, first.prompt.num_virtual_tokens),
            "prompt.init_from": (config.prompt.init_from or "nothing", first.prompt.init_from or "nothing"),
        }
        if (
            kind_of(first.method) == "prefix"
        ):  # whether a decoder is read decides which stacks the prefix is for
            read, others = ("left out" if c.prompt.decoder is None else "given" for c in (config, first))
            pairs["prompt.decoder"] = (read, others)
        for key, (own, other) in pairs.items():
            if own != other:
                raise ConfigError(
                    f"share: {key} is {own} for {config.task_id} and {other} for {first.task_id}: tasks that share a "
                    "prompt have it alike"
                )
    for config in configs:
        if config.prompt.reparameterisation not in (None, "none"):
            raise ConfigError(
                f'share: {config.task_id} has prompt.reparameterisation = "'
                f'{config.prompt.reparameterisation}"; what is shared is the prompt itself: use "none"'
            )


def joint_learners(
    runs: Sequence[Run], tasks: Sequence[Task], parameterisation: MultitaskParameterisation
) -> Iterator[Learner]:
    """One learner for each seed, all tasks in it; the largest task's optimiser settings are everyone's."""
    configs = [run.config for run in runs]
    largest = max(range(len(runs)), key=lambda at: len(tasks[at].train))
    # The common start is of all tasks' words.
    initialiser = Initialiser(
        runs[0].backbone,
        [row for task in tasks for row in task.train.whole],
        task_text=" ".join(config.prompt.task_text for config in configs).strip(),
        label_texts=[text for config in configs for text in starting_texts(config)],
    )
    common = runs[largest].starts(tasks[largest], initialiser)
    for seed in configs[0].seeds:
        heads = [run.starts(task, initialiser).head(seed) for run, task in zip(runs, tasks, strict=True)]
        yield Learner(
            f"{PREFIX}seed-{seed}",
            runs[0].backbone,
            tasks,
            parameterisation.start(common.prompt(seed), heads, seed),
            configs[largest].optimiser,
            seed=seed,
            ranks=runs[0].ranks,
            fold=lambda raw: [parameterisation.fold_task(raw, at) for at in range(len(tasks))],
        )


def of_task(learned: Learned, at: int) -> Learned:
    """One task's part of what was learned jointly, as if it had been learned alone."""
    prompt = learned.prompts[at]
    return replace(learned, raw=dict(prompt), prompts=(prompt,))


def begun(learned: Mapping[int, Learned], at: int) -> dict[int, dict[str, Tensor]]:
    """By seed: the tensors that task `at` goes on from, named as in its prompt file."""
    return {seed: dict(one.prompts[at]) for seed, one in learned.items()}


def new_task(learned: Learned, parameterisation: MultitaskParameterisation) -> dict[str, Tensor]:
    """What a task that was not among them starts from: soft prompt or prefix, named as in the prompt file."""
    start = parameterisation.new_task(learned.raw)
    return {name: tensor for name, tensor in start.items() if group_of(name) == "prompt"}
