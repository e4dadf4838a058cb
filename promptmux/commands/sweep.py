"""`promptmux sweep`: try several settings of one task in one batch, and keep the best on dev."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from promptmux.commands import training_options as options
from promptmux.commands.options import AdminKey, Force

_Flag = typer.Option


def run(
    config: Annotated[Path | None, typer.Argument(help="A TOML file that describes the run.")] = None,
    grid: Annotated[
        list[str] | None,
        _Flag(
            help="Values to try, as optimiser.prompt_lr=0.005,0.02; again for another key: all combinations.",
            metavar="KEY=VALUE,VALUE",
        ),
    ] = None,
    task: options.Task = None,
    method: options.Method = None,
    train: options.Train = None,
    dev: options.Dev = None,
    test: options.Test = None,
    output: Annotated[str | None, _Flag(help="The sweep's folder (default: runs/TASK-sweep).")] = None,
    backbone: options.BackboneName = None,
    dtype: options.Dtype = None,
    seeds: options.Seeds = None,
    set_: options.Set = None,
    log_with: options.LogWith = None,
    resume: Annotated[Path | None, _Flag(help="Go on with an interrupted sweep's folder.")] = None,
    publish: options.Publish = None,
    alias: options.Alias = "current",
    key: AdminKey = None,
    force: Force = False,
) -> None:
    """Try settings by successive halving: all seeds of all settings share each batch, the worse half stops early.

    Dev chooses; the best setting is reported on the test set, once, and its folder is a run folder.
    """
    from rich.console import Console

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
        "seeds": options.seeds_of(seeds),
        "log_with": log_with or None,
        **options.settings_of(set_ or []),
    }
    if resume is not None:
        options.refuse_settings({"CONFIG": config} | overrides | {"--grid": grid or None})
    if config is None and output is None and task is not None:
        overrides["output"] = f"runs/{task}-sweep"
    publishing = options.Publishing(publish, alias, key, force)
    with publishing.later(), trainer.join(os.environ) as ranks:
        if isinstance(ranks, trainer.Helper):
            ranks.help()
            return
        console = Console()
        if resume is not None:
            result = trainer.resume_sweep(resume, console=console, ranks=ranks)
        else:
            settings = trainer.plan(config, overrides, options.grid_of(grid or []))
            result = trainer.sweep(settings, console=console, ranks=ranks)
        console.print(publishing.publish(result.prompt), highlight=False, markup=False, soft_wrap=True)
