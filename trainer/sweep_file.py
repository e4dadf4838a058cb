"""Owns sweep.json: a sweep's settings, resolved, and the comparisons made so far, from which a killed sweep goes on.

Trains nothing and compares nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, JsonValue, model_validator

from trainer.config import config_of
from trainer.errors import RunFolderError
from trainer.grid import Setting
from trainer.run_folder import SWEEP, with_absolute_paths
from trainer.state import write_atomically


@dataclass(frozen=True)
class Rung:
    """One comparison: after `evaluations` of each, every setting's seeds' best dev accuracy, and who goes on."""

    evaluations: int
    scores: Mapping[str, Sequence[float]]
    kept: Sequence[str]


class _SavedSetting(BaseModel):
    name: str
    values: dict[str, JsonValue]
    config: dict[str, Any]  # `config_of` says which of its keys is wrong


class _Saved(BaseModel):
    """What the file holds."""

    settings: Annotated[list[_SavedSetting], Field(min_length=1)]
    rungs: list[Rung]

    @model_validator(mode="after")
    def _of_these_settings(self) -> Self:
        names = {setting.name for setting in self.settings}
        if len(names) < len(self.settings):
            raise ValueError("a setting is there twice")
        if any(not rung.kept or not names >= {*rung.kept, *rung.scores} for rung in self.rungs):
            raise ValueError("a comparison of other settings")
        return self


def save_sweep(folder: Path, settings: Sequence[Setting], rungs: Sequence[Rung]) -> None:
    """Write the file whole; `settings` are resolved, and the same from every working folder afterwards."""
    saved = {
        "settings": [
            {
                "name": setting.name,
                "values": dict(setting.values),
                "config": with_absolute_paths(setting.config).model_dump(mode="json"),
            }
            for setting in settings
        ],
        "rungs": [asdict(rung) for rung in rungs],
    }
    write_atomically(folder / SWEEP, json.dumps(saved, indent=1, allow_nan=False).encode())


def read_sweep(folder: Path) -> tuple[list[Setting], list[Rung]]:
    """What `save_sweep` saved, for a sweep that goes on in this folder. Raises RunFolderError, or ConfigError."""
    path = folder / SWEEP
    try:
        saved = _Saved.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunFolderError(f"{folder}: no sweep to resume here ({SWEEP} is missing)") from None
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}") from None
    except ValueError:  # of JSON, or pydantic's
        raise RunFolderError(
            f"{path}: not the settings and comparisons of a sweep; put back the file that was there"
        ) from None
    settings = [
        Setting(one.name, one.values, config_of(one.config, {"output": str(folder)}, path))
        for one in saved.settings
    ]
    return settings, saved.rungs
