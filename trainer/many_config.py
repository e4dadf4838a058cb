"""Owns the file that describes many tasks to be trained in one go. Knows no torch and trains nothing.

output = "runs/all"                 # each task's folder is made in it
rows_at_once = 128                  # optional: rows of one step, all tasks together
share = "factored"                  # optional: tasks that learn together (`trainer.joint`), with its rank

[defaults]                          # any settings of a run, for all tasks
method = "p-tuning-v2"

[[task]]
task_id = "reviews"
data.train = "reviews.jsonl"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, cast, get_args

from trainer.config import TrainConfig, config_of
from trainer.config_file import MANY, read_toml, with_paths_from
from trainer.errors import ConfigError

Share = Literal["prompt", "factored"]
MAX_RANK = 64
# What the output folder holds beside the tasks' folders, and a task may not be called.
LIST, NEW_TASK, STATE = "many.json", "new-task.safetensors", "state"
TAKEN = (LIST, NEW_TASK, STATE, "logs")


@dataclass(frozen=True)
class ManyConfig:
    """Several tasks' configurations, all on one backbone; their run folders are in `output`."""

    output: Path
    tasks: tuple[TrainConfig, ...]
    rows_at_once: int | None = None
    share: Share | None = None
    rank: int = 1

    @property
    def shared(self) -> dict[str, object]:
        """What decides, besides the tasks' own settings, what they learn."""
        if self.share is None:
            return {"share": None}
        tasks = [task.task_id for task in self.tasks]
        return {"share": self.share, "the tasks": tasks} | (
            {"rank": self.rank} if self.share == "factored" else {}
        )


def is_many(path: Path) -> bool:
    """Whether a TOML file describes several tasks, or is meant to."""
    return not MANY.isdisjoint(read_toml(path))


def load_many(path: Path, overrides: Mapping[str, object] | None = None) -> ManyConfig:
    """Read a file of several tasks; `overrides` (dotted keys) are laid over every task.

    Paths are relative to the file. Raises ConfigError with one line that names the task and the key.
    """
    values, given = read_toml(path), dict(overrides or {})
    if "tasks" in values:
        raise ConfigError(f"{path}: tasks: unknown setting; each task is a table [[task]]")
    known = {"output", "rows_at_once", "share", "rank", "defaults", "task"}
    if "task" not in values and "task_id" in values:
        raise ConfigError(
            f"{path}: defaults: a file of one task has none; a file of many has a table [[task]] for each"
        )
    if unknown := sorted(set(values) - known):
        near = get_close_matches(unknown[0], sorted(known), n=1, cutoff=0.7)
        meant = f"did you mean {near[0]}?" if near else "what all tasks share belongs under [defaults]"
        raise ConfigError(f"{path}: {unknown[0]}: unknown setting; {meant}")
    entries, defaults = values.get("task", []), values.get("defaults", {})
    laid_over = given.pop("rows_at_once", None)
    rows = rows_of(values.get("rows_at_once") if laid_over is None else laid_over, path)
    output = given.pop("output", None) or with_paths_from(path.parent, values).get("output")
    tables = isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)
    if not isinstance(output, str) or not tables or not isinstance(defaults, dict):
        raise ConfigError(
            f'{path}: expected output = "FOLDER", a table [defaults], and a [[task]] for each task'
        )
    share, rank = sharing_of(values, path)
    if "rank" in values and share != "factored":
        raise ConfigError(f'{path}: rank: is that of share = "factored"; leave it out')
    if given.get("task_id") is not None or "task_id" in defaults:
        raise ConfigError(f"{path}: task_id: each [[task]] has its own; give none for all of them")
    if any("output" in table for table in (defaults, *entries)):
        raise ConfigError(f"{path}: output: each task's folder is made in the one at the top of the file")
    if any("rows_at_once" in table for table in (defaults, *entries)):
        raise ConfigError(f"{path}: rows_at_once: one step is for all tasks: give it at the top of the file")
    tasks: dict[str, TrainConfig] = {}
    for at, entry in enumerate(entries, 1):
        name = str(entry.get("task_id", f"number {at}"))
        if name in tasks:
            raise ConfigError(f"{path}: task {name} is there twice")
        if name in TAKEN:
            raise ConfigError(f"{path}: task {name}: a file or folder of that name is made beside the tasks'")
        merged = with_paths_from(path.parent, _merged(defaults, entry)) | {"output": str(Path(output) / name)}
        try:
            tasks[name] = config_of(merged, given)
        except ConfigError as error:
            raise ConfigError(f"{path}: task {name}: {error}") from None
    if len({(task.backbone, task.device, task.dtype) for task in tasks.values()}) > 1:
        raise ConfigError(f"{path}: tasks that share a batch share the backbone, its device and its dtype")
    return ManyConfig(Path(output), tuple(tasks.values()), rows, share, rank)


def sharing_of(values: Mapping[str, object], path: Path) -> tuple[Share | None, int]:
    """`share` and `rank` as a file has them. Raises ConfigError."""
    share, rank = values.get("share"), values.get("rank", 1)
    if share not in (None, *get_args(Share)):
        raise ConfigError(f'{path}: share: expected "prompt" or "factored", or leave it out')
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise ConfigError(f"{path}: rank: expected a whole number from 1 to {MAX_RANK}")
    return cast("Share | None", share), rank


def rows_of(value: object, path: Path) -> int | None:
    """`rows_at_once` as a file has it. Raises ConfigError."""
    if value is not None and (type(value) is not int or value < 1):
        raise ConfigError(f"{path}: rows_at_once: expected a whole number of rows")
    return value


def _merged(defaults: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """`own` over `defaults`, table by table."""
    result = dict(defaults)
    for key, value in own.items():
        before = result.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return result
