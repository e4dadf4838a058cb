"""Owns a run's settings as a TOML file: reading, the paths in it, and writing. What they mean is `trainer.config`'s."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from trainer.config import TrainConfig, config_of
from trainer.errors import ConfigError

# What a file of many tasks has at its top, or whoever meant to write one.
MANY = frozenset({"task", "tasks", "defaults"})


def load_config(path: Path | None = None, overrides: Mapping[str, object] | None = None) -> TrainConfig:
    """Read a TOML file and lay `overrides` (dotted keys such as "data.train"; None = not given) over it.

    Relative paths inside the file are relative to the file; paths among the overrides to the working folder.
    Raises ConfigError with one line that names the key.
    """
    values = {} if path is None else with_paths_from(path.parent, read_toml(path))
    if not MANY.isdisjoint(values):
        raise ConfigError(
            f"{path}: describes many tasks, which only promptmux train takes; here one is wanted"
        )
    return config_of(values, overrides, path)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's values. Raises ConfigError with one line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def with_paths_from(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """A run's values with the paths among them read relative to `folder`."""
    result = dict(values)
    if isinstance(values.get("data"), dict):
        result["data"] = data = dict(values["data"])
        for split in ("train", "dev", "test"):
            if isinstance(data.get(split), str) and not data[split].startswith("hf:"):
                data[split] = os.path.normpath(folder / data[split])
    prompt = values.get("prompt")
    if isinstance(prompt, dict) and isinstance(prompt.get("init_from"), str):
        result["prompt"] = {**prompt, "init_from": source_in(folder, prompt["init_from"])}
    if isinstance(values.get("output"), str):
        result["output"] = os.path.normpath(folder / values["output"])
    if isinstance(values.get("backbone"), str):
        result["backbone"] = backbone_in(folder, values["backbone"])
    return result


def backbone_in(folder: Path, name: str) -> str:
    """What `backbone` names, as seen from `folder`: the place of a model's folder that is there, or else an id."""
    built_in = name == TrainConfig.model_fields["backbone"].default
    there = not built_in and (folder / name / "config.json").is_file()
    return os.path.normpath(folder / name) if there else name


def source_in(folder: Path, where: str) -> str:
    """What `prompt.init_from` names, as seen from `folder`: a path, or TASK@ and a store's path or file:// URL, is
    relative to it.
    """
    task, at, store = where.partition("@")
    if not at or (folder / where).exists():
        return os.path.normpath(folder / where)
    if store.startswith("file://") and not store.startswith("file:///"):
        store = unquote(store.removeprefix("file://"))
    return where if "://" in store else f"{task}@{os.path.normpath(folder / store)}"


def to_toml(config: TrainConfig) -> str:
    """Write a configuration that `load_config` reads back to an equal one; settings at None are left out."""
    values = config.model_dump(mode="json", exclude_none=True)
    golden = values.pop("golden")
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
    if isinstance(golden, str):
        lines.append(f"golden = {_toml(golden)}")
    for name, table in tables.items():
        lines += ["", f"[{name}]"] + [f"{key} = {_toml(value)}" for key, value in table.items()]
    for example in golden if isinstance(golden, list) else ():
        lines += ["", "[[golden]]"] + [f"{key} = {_toml(value)}" for key, value in example.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"no TOML form for {type(value).__name__}")
