"""`promptmux train`: learn a prompt from a file of examples, or many in one go, and publish what came of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptmux.commands import training_options as options
from promptmux.commands.options import AdminKey, Force

if TYPE_CHECKING:
    from trainer.ranks import Ranks

_Flag = typer.Option


def run(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file that describes the run, or many with [[task]].")
    ] = None,
    task: options.Task = None,
    method: options.Method = None,
    train: options.Train = None,
    dev: options.Dev = None,
    test: options.Test = None,
    output: Annotated[str | None, _Flag(help="The run folder (default: runs/TASK-METHOD).")] = None,
    backbone: options.BackboneName = None,
    dtype: options.Dtype = None,
    virtual_tokens: Annotated[int | None, _Flag(help="Length of the soft prompt or prefix.")] = None,
    epochs: Annotated[int | None, _Flag(help="Passes over the training set.")] = None,
    seeds: options.Seeds = None,
    ensemble: Annotated[
        bool, _Flag("--ensemble", help="One prompt of all seeds, which answer together, not of the best one.")
    ] = False,
    set_: options.Set = None,
    log_with: options.LogWith = None,
    resume: Annotated[Path | None, _Flag(help="Go on with an interrupted run folder.")] = None,
    publish: options.Publish = None,
    alias: options.Alias = "current",
    key: AdminKey = None,
    force: Force = False,
) -> None:
    """Learn a prompt: several seeds, a table against majority and a linear head, and a run folder.

    With a file of many tasks, all of them: their prompts share each batch, and each ends with a run folder. Started by
    torchrun or accelerate launch, the processes share the rows of each batch.
    """
    import trainer

    overrides: dict[str, object] = {
        "task_id": task,
        "method": method,
        "data.train": train,
        "data.dev": dev,
        "data.test": test,
        "output": output,
        "backbone": backbone,
        "dtype": dtype,
        "prompt.num_virtual_tokens": virtual_tokens,
        "optimiser.epochs": epochs,
        "seeds": options.seeds_of(seeds),
        "ensemble": ensemble or None,
        "log_with": log_with or None,
        **options.settings_of(set_ or []),
    }
    if resume is not None:
        options.refuse_settings({"CONFIG": config} | overrides)
    if config is None and output is None and task is not None:
        overrides["output"] = f"runs/{task}-{method or trainer.TrainConfig.model_fields['method'].default}"
    publishing = options.Publishing(publish, alias, key, force)
    with publishing.later(), trainer.join(os.environ) as ranks:
        if isinstance(ranks, trainer.Helper):
            ranks.help()
        else:
            _learn(config, overrides, resume, ranks, publishing)


def _learn(
    config: Path | None,
    overrides: dict[str, object],
    resume: Path | None,
    ranks: Ranks,
    publishing: options.Publishing,
) -> None:
    from rich.console import Console

    import trainer

    console = Console()
    if resume is not None and trainer.is_many_folder(resume):
        many = trainer.resume_many(resume, console=console, ranks=ranks)
    elif resume is None and config is not None and trainer.is_many(config):
        many = trainer.train_many(trainer.load_many(config, overrides), console=console, ranks=ranks)
    else:
        if resume is not None:
            result = trainer.resume(resume, console=console, ranks=ranks)
        else:
            result = trainer.train(trainer.load_config(config, overrides), console=console, ranks=ranks)
        console.print(publishing.publish(result.prompt), highlight=False, markup=False, soft_wrap=True)
        return
    refused = 0
    for folder in many.finished.values() if publishing.target is not None else ():
        try:  # the next task may be better
            said = publishing.publish(folder.prompt)
        except trainer.TrainerError as error:
            said, refused = options.not_published(folder.prompt, error), refused + 1
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    if many.failures:
        raise trainer.TrainingFailedError(f"{len(many.failures)} of the tasks failed: see the table")
    if refused:
        raise trainer.NotAllPublishedError(
            f"{refused} of {len(many.finished)} prompts were not published: see above"
        )
