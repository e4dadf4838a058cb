"""`promptmux reference`: what a prompt is compared with, scored on the same examples and never published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from promptmux.commands import training_options as options
from promptmux.commands.files import prompt_file

_Flag = typer.Option


def run(
    config: Annotated[
        Path | None,
        typer.Argument(help="A TOML file as `promptmux train` takes it: its data, template and words."),
    ] = None,
    task: Annotated[str | None, _Flag(help="What the table is called (default: the file's task).")] = None,
    train: options.Train = None,
    dev: options.Dev = None,
    test: options.Test = None,
    strategy: Annotated[
        str, _Flag(help="Of head-only, full-fine-tuning and fixed-prompt, separated by commas.")
    ] = "head-only,full-fine-tuning,fixed-prompt",
    seeds: options.Seeds = None,
    backbone: options.BackboneName = None,
    prompt: Annotated[
        Path | None,
        _Flag(help="A trained prompt file, or its run folder, for fixed-prompt, in place of a template."),
    ] = None,
    lr: Annotated[
        str, _Flag(help="Learning rates, separated by commas; of several, dev chooses one.")
    ] = "5e-5",
    epochs: Annotated[
        int | None, _Flag(help="Passes over the training set (default: 3, and at least 1,000 steps).")
    ] = None,
    batch_size: Annotated[int, _Flag(help="Examples in a step.")] = 32,
    set_: options.Set = None,
    output: Annotated[
        Path | None,
        _Flag(help="The folder of the scores (default: runs/TASK-reference); it goes on from there."),
    ] = None,
) -> None:
    """Compare: majority, zero-shot, head only, full fine-tuning, and a fixed prompt with a tuned model."""
    from rich.console import Console

    from trainer import ConfigError, load_config
    from trainer.fine_tuning import Recipe
    from trainer.ranks import launched
    from trainer.reference import run_references

    if launched(os.environ) is not None:
        raise ConfigError(
            "references are computed by one process: start it without torchrun or accelerate launch"
        )
    chosen = load_config(
        config,
        {
            "task_id": task or (None if config else "reference"),
            "output": "unused",
            "data.train": train,
            "data.dev": dev,
            "data.test": test,
            "backbone": backbone,
            "seeds": options.seeds_of(seeds),
            **options.settings_of(set_ or []),
        },
    )
    run_references(
        chosen,
        [name.strip() for name in strategy.split(",")],  # type: ignore[misc]
        console=Console(),
        folder=output or Path(f"runs/{chosen.task_id}-reference"),
        recipe=Recipe(_rates(lr), epochs, batch_size),
        prompt=prompt and prompt_file(prompt),
    )


def _rates(text: str) -> tuple[float, ...]:
    from trainer import ConfigError

    try:
        return tuple(float(rate) for rate in text.split(","))
    except ValueError:
        raise ConfigError("--lr: expected numbers separated by commas, such as 5e-5,2e-5") from None
