"""Owns the points of a sweep's grid: every combination of the values to try. Trains nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainConfig
from trainer.config_file import load_config
from trainer.errors import ConfigError, named
from trainer.methods import trains_prompt

Grid = Mapping[str, Sequence[object]]
_SECTIONS = ("prompt", "head", "optimiser")


@dataclass(frozen=True)
class Setting:
    """One point of the grid: dotted keys and their values."""

    name: str
    values: Mapping[str, object]
    config: TrainConfig


def plan(config: Path | None, overrides: Mapping[str, object], grid: Grid) -> list[Setting]:
    """Every combination of the grid's values, in order. Raises ConfigError for one that cannot work."""
    if not grid:
        raise ConfigError("give at least one --grid KEY=VALUE,VALUE…, such as optimiser.prompt_lr=0.005,0.02")
    for key in grid:
        # One backbone, one set of examples and one folder: what they depend on cannot differ among settings.
        if key != "method" and key.partition(".")[0] not in _SECTIONS:
            raise ConfigError(
                f"--grid {key}: a sweep tries values of method, prompt.*, head.* and optimiser.*, and shares all else: "
                f"give {key} one value with --set, and sweep anew for another"
            )
    settings = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = ", ".join(f"{key.split('.')[-1]}={value}" for key, value in point.items())
        with named(f"setting {name}"):
            made = load_config(config, {**overrides, **point})
        if not trains_prompt(made.method):
            raise ConfigError(
                f"{name}: method {made.method!r} trains no prompt, so there is nothing to sweep"
            )
        settings.append(Setting(name, point, made))
    if len({setting.name for setting in settings}) < len(settings):
        raise ConfigError("the grid has the same setting twice")
    return settings
