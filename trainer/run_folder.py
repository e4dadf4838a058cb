"""Owns the layout of a run folder and who may write to it. Knows no training.

config.toml               everything that is needed to repeat the run
metrics.json  table.txt   curves.png
prompt.safetensors        the one to publish: the best seed on dev, or the ensemble of all seeds
seeds/seed-N.safetensors  every seed's prompt
seeds/seed-N.learned.safetensors   what was trained, in full precision: what a warm start begins with
state/                    what resuming needs; may be deleted once the run is finished
sweep.json  sweep.png     of a sweep: its settings and comparisons (`trainer.sweep_file`), and how they went
logs/                     experiment logs, where `log_with` asks for them
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.config_file import backbone_in, load_config, source_in, to_toml
from trainer.errors import RanksError, RunFolderError
from trainer.many_config import LIST
from trainer.state import write_atomically

CONFIG, SWEEP = "config.toml", "sweep.json"
COMPARISON, CELLS = "settings.json", "cells"  # of `trainer.reference_folder`


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def prompt(self) -> Path:
        """The prompt file to publish."""
        return self.root / "prompt.safetensors"

    @property
    def metrics(self) -> Path:
        """metrics.json; it is written last, so its presence says that the run is finished."""
        return self.root / "metrics.json"

    @property
    def table(self) -> Path:
        """The table as text."""
        return self.root / "table.txt"

    @property
    def curves(self) -> Path:
        """Loss and dev score over epochs."""
        return self.root / "curves.png"

    def seed_prompt(self, seed: int) -> Path:
        """One seed's prompt file."""
        return self.root / "seeds" / f"seed-{seed}.safetensors"

    def learned(self, seed: int) -> Path:
        """What one seed trained, in full precision and before any folding."""
        return self.root / "seeds" / f"seed-{seed}.learned.safetensors"

    @property
    def state(self) -> Path:
        """The folder of what resuming needs."""
        return self.root / "state"

    @property
    def identity(self) -> Path:
        """What the state belongs to: digests of data and backbone, the dtype that was asked for, and the settings."""
        return self.root / "state" / "identity.json"

    @property
    def started(self) -> bool:
        """Whether a run was begun here."""
        return (self.root / CONFIG).exists()

    @property
    def company(self) -> Path | None:
        """The folder of the tasks that this one is trained with, where it is one of many."""
        own = self.root.absolute()
        try:
            return own.parent if own.name in read_list(own.parent)["tasks"] else None
        except RunFolderError:  # none there, or a file of that name that is something else
            return None

    @property
    def begun(self) -> str | None:
        """What was begun in it: a run, a sweep, many tasks; None: nothing that a training goes on with."""
        if (self.root / LIST).exists():
            return "tasks were trained in it"
        if (self.root / SWEEP).exists():
            return "there is a sweep in it"
        return "there is a run in it" if self.started else None

    @property
    def _compared(self) -> bool:
        # Other programs have a settings.json, too.
        return (self.root / COMPARISON).is_file() and (self.root / CELLS).is_dir()

    def refuse_taken(self) -> None:
        """Raise RunFolderError when a run, a sweep or many tasks were begun in it, or another's results lie in it."""
        what, finished = self.begun, self.metrics.exists()
        if what is None and not finished and not self._compared:
            return
        go_on = f"go on ({self.resume_command()}) or " if what is not None and not finished else ""
        raise RunFolderError(
            f"{self.root}: {what or 'there are results in it'} already; {go_on}choose another --output"
        )

    def create(self, config: TrainConfig) -> None:
        """Make the folder and write config.toml. Raises RunFolderError where it cannot be written to."""
        try:
            for folder in (self.root, self.root / "seeds", self.root / "state"):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.root / CONFIG, to_toml(config).encode())
        except OSError as error:
            raise RunFolderError(f"{self.root}: {error.strerror}") from None

    def config(self) -> TrainConfig:
        """The configuration that the run was started with; its `output` is this folder, wherever it was
        moved.
        """
        if (self.root / SWEEP).exists() and not self.metrics.exists():
            raise RunFolderError(f"{self.root}: this is a sweep; go on with: {self.resume_command()}")
        if not self.started:
            raise RunFolderError(f"{self.root}: no run to resume here ({CONFIG} is missing)")
        return load_config(self.root / CONFIG, {"output": str(self.root)})

    def claim(self, identity: Mapping[str, object]) -> None:
        """Bind the state to data, backbone and settings, or raise RunFolderError when it was made with others.

        What an earlier version did not write down is not compared.
        """
        try:
            known = json.loads(self.identity.read_text())
        except FileNotFoundError:
            self._bind(identity)
            return
        except OSError as error:
            raise RunFolderError(f"{self.identity}: {error.strerror}") from None
        except ValueError:
            known = None
        if not isinstance(known, dict):
            raise RunFolderError(
                f"{self.identity}: not what a run's state belongs to; put back what was there, or start a new run"
            )
        changed = sorted(key for key in identity if known.get(key, identity[key]) != identity[key])
        if changed:
            raise RunFolderError(
                f"{self.root}: {', '.join(changed)} changed since this run began; put back what it began with, or "
                "start a new run"
            )

    def _bind(self, identity: Mapping[str, object]) -> None:
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.state}: {error.strerror}") from None
        write_atomically(self.identity, json.dumps(identity).encode())

    @contextmanager
    def gone_on_with(self) -> Iterator[None]:
        """When another process of the run fails or is gone: say how to go on with what was saved."""
        try:
            yield
        except RanksError as error:
            raise RanksError(
                f"{error}; go on with what was saved last, if anything was: {self.resume_command()}"
            ) from None

    def resume_command(self) -> str:
        """What to type to go on with what was begun in it."""
        command = "sweep" if (self.root / SWEEP).exists() else "train"
        return f"promptmux {command} --resume {shlex.quote(str(self.company or self.root))}"


def read_list(folder: Path) -> dict[str, Any]:
    """What `trainer.many` wrote of the tasks that are trained in a folder. Raises RunFolderError."""
    path = folder / LIST
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}") from None
    except ValueError:
        listed = None
    names = listed.get("tasks") if isinstance(listed, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RunFolderError(f"{path}: not a list of tasks that are trained here; put back the one that was")
    return dict(listed)


def deciding(config: TrainConfig) -> dict[str, object]:
    """The settings that decide what is learned, as `identity` keeps them: by dotted key, JSON's values."""
    values = config.model_dump(
        mode="json", include={"method", "labels", "multi_label", "seeds", "ensemble", "calibrate"}
    )
    for section in ("prompt", "head", "optimiser"):
        own = getattr(config, section).model_dump(mode="json")
        values |= {f"{section}.{key}": value for key, value in own.items()}
    del values["prompt.init_from"]  # its version decides, wherever it lies
    return values


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The run folder's config.toml must mean the same from every working folder."""
    paths = {
        name: str(Path(path).resolve())
        for name in ("train", "dev", "test")
        if (path := getattr(config.data, name)) is not None and not path.startswith("hf:")
    }
    prompt = config.prompt
    if prompt.init_from is not None:
        prompt = prompt.model_copy(update={"init_from": source_in(Path.cwd(), prompt.init_from)})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=paths),
            "prompt": prompt,
            "output": str(Path(config.output).resolve()),
            "backbone": backbone_in(Path.cwd(), config.backbone),
        }
    )
