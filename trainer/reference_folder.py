"""Owns the folder of a comparison: one small file for each finished training, so that a killed run repeats only the
one it was at.

settings.json             what all of it belongs to: data, model, recipe
cells/NAME.json           one strategy, learning rate and seed, or one row that has none: its scores
metrics.json  table.txt   the result
state/lock                which process writes here (`trainer.lock`), where a training has its own

There is no prompt file: nothing of a reference is published. Knows no training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import RunFolderError
from trainer.lock import Lock, lock_folder
from trainer.report import Point
from trainer.run_folder import CELLS, COMPARISON, RunFolder
from trainer.scores import Scores
from trainer.state import write_atomically


@dataclass(frozen=True)
class Cell:
    """The result of one training (or of a row that has no training): scores on dev, and on what is reported."""

    name: str
    seed: int | None
    lr: float | None
    dev: Scores
    test: Scores
    points: tuple[Point, ...]
    steps: int
    seconds: float


@dataclass(frozen=True)
class ReferenceFolder:
    """The paths of one comparison, and its finished cells."""

    root: Path

    @property
    def metrics(self) -> Path:
        """metrics.json."""
        return self.root / "metrics.json"

    @property
    def table(self) -> Path:
        """The table as text."""
        return self.root / "table.txt"

    def refuse_taken(self) -> None:
        """Raise RunFolderError where a training was begun in it: this metrics.json would make that a finished one."""
        if (what := RunFolder(self.root).begun) is not None:
            raise RunFolderError(f"{self.root}: {what} already; choose another --output")

    def claim(self, settings: Mapping[str, Any]) -> Lock:
        """Make the folder, or see that what is in it was made with the same settings. Raises RunFolderError.

        As long as what it returns lives, no other process writes there.
        """
        file, told = self.root / COMPARISON, json.loads(json.dumps(settings))
        lock = lock_folder(RunFolder(self.root).state)
        self.refuse_taken()
        if file.exists() and not (self.root / CELLS).is_dir():
            raise RunFolderError(f"{file}: there already, and of something else; choose another --output")
        try:
            (self.root / CELLS).mkdir(parents=True, exist_ok=True)
            if not file.exists():
                write_atomically(file, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
                return lock
            known = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunFolderError(f"{self.root}: {error.strerror}") from None
        except ValueError:
            raise RunFolderError(f"{file}: not readable; delete {self.root} to begin anew") from None
        changed = sorted(key for key in told if not isinstance(known, dict) or known.get(key) != told[key])
        if changed:
            raise RunFolderError(
                f"{self.root}: {', '.join(changed)} changed since what is in it was measured; choose another --output"
            )
        return lock

    def load(self, name: str) -> Cell | None:
        """A finished cell; None when there is none. Raises RunFolderError when its file is damaged."""
        file = self._cell(name)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            points = tuple(Point(**point) for point in values.pop("points"))
            dev, test = Scores.from_dict(values.pop("dev")), Scores.from_dict(values.pop("test"))
            return Cell(name=name, dev=dev, test=test, points=points, **values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{file}: not readable ({error}); delete it to train this one again"
            ) from None

    def save(self, cell: Cell) -> None:
        """Keep a finished cell; it is there whole or not at all."""
        values = asdict(cell) | {"dev": cell.dev.as_dict(), "test": cell.test.as_dict()}
        values.pop("name")
        write_atomically(self._cell(cell.name), json.dumps(values, allow_nan=False).encode())

    def _cell(self, name: str) -> Path:
        return self.root / CELLS / f"{name}.json"
