"""`promptmux train`: learn a prompt from a file of examples, and publish it if asked to."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from promptmux.commands.options import AdminKey

_Flag = typer.Option


def run(
    config: Annotated[Path | None, typer.Argument(help="A TOML file that describes the run.")] = None,
    task: Annotated[str | None, _Flag(help="The task's id.")] = None,
    method: Annotated[
        str | None, _Flag(help="prompt-tuning, p-tuning-v2, head-only or hard-prompt (nothing is trained).")
    ] = None,
    train: Annotated[
        str | None,
        _Flag(
            help="Examples: a JSONL, CSV or TSV file, a folder with *.pos and *.neg, or hf:NAME[/config][:split]."
        ),
    ] = None,
    dev: Annotated[
        str | None, _Flag(help="Examples that choose; split off the training set if absent.")
    ] = None,
    test: Annotated[str | None, _Flag(help="Examples that are reported; split off likewise.")] = None,
    output: Annotated[str | None, _Flag(help="The run folder (default: runs/TASK-METHOD).")] = None,
    backbone: Annotated[str | None, _Flag(help="minilm, a folder or a Hugging Face id.")] = None,
    dtype: Annotated[str | None, _Flag(help="auto, float32, bfloat16 or float16.")] = None,
    virtual_tokens: Annotated[int | None, _Flag(help="Length of the soft prompt or prefix.")] = None,
    epochs: Annotated[int | None, _Flag(help="Passes over the training set.")] = None,
    seeds: Annotated[str | None, _Flag(help="Seeds, separated by commas.")] = None,
    set_: Annotated[
        list[str] | None,
        _Flag("--set", help="Any other setting, as optimiser.prompt_lr=0.02.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[Path | None, _Flag(help="Go on with an interrupted run folder.")] = None,
    publish: Annotated[
        str | None, _Flag(help="Publish the result: a store's folder or URL, or a server's admin address.")
    ] = None,
    alias: Annotated[str, _Flag(help="The alias that then leads to it.")] = "current",
    key: AdminKey = None,
) -> None:
    """Learn a prompt: several seeds, a table against majority and a linear head, and a run folder."""
    from rich.console import Console

    import trainer

    console = Console()
    if resume is not None:
        result = trainer.resume(resume, console=console)
    else:
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
            "seeds": None if seeds is None else _seeds(seeds),
            **_settings(set_ or []),
        }
        if config is None and output is None and task is not None:
            overrides["output"] = f"runs/{task}-{method or 'prompt-tuning'}"
        result = trainer.train(trainer.load_config(config, overrides), console=console)
    if publish is not None:
        done = trainer.publish(result.prompt, publish, alias=alias, key=key)
        console.print(
            f"published {done.task_id} {done.version[:12]} as {done.alias} to {done.target}", highlight=False
        )
    else:
        console.print(f"publish it: promptmux publish {result.prompt}", highlight=False, soft_wrap=True)


def _seeds(text: str) -> list[int]:
    from trainer import ConfigError

    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ConfigError("--seeds: expected whole numbers separated by commas, such as 0,1,2") from None


def _settings(given: list[str]) -> dict[str, object]:
    """Parse KEY=VALUE pairs; the value is TOML, or plain text where it is no TOML."""
    from trainer import ConfigError

    settings: dict[str, object] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: expected KEY=VALUE, such as optimiser.epochs=3")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = value
    return settings
