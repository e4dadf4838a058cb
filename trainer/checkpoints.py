"""Owns the saved states of learners that are trained together: all of one moment, or none.

Who shared a batch with whom decides the last bits of a result, so a run that goes on must find its learners as they
stood at one and the same step. Each state is a file of its own; the index that names them is replaced last. Knows no
training.

lock                  which process trains here (`trainer.lock`)
index.json            the files of one moment, by learner
NAME.STEP.safetensors  one learner's state
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from trainer.errors import RunFolderError
from trainer.learner import Learner
from trainer.lock import Lock, lock_folder
from trainer.state import load_checkpoint, save_checkpoint, write_atomically

# A killed run loses this many seconds of work, or what lies between two evaluations if that is longer; or so many times
# what a save takes, where many learners or large ones are saved at once.
SECONDS_BETWEEN, TIMES_A_SAVE = 5.0, 20.0


class Checkpoints:
    """The states in one folder, for one process at a time: others are refused while this object lives."""

    def __init__(self, folder: Path) -> None:
        """Raises RunFolderError when another process trains here, or the folder holds an index that is none.

        Where the run's folder is not made yet, this one is made, and locked, when something is saved.
        """
        self._folder = folder
        self._lock: Lock | None = None
        if folder.parent.exists():
            self.lock()
        self._files = self._read_index()
        self._saved_at: float | None = None
        self._took = 0.0  # seconds of the last save
        # Where each learner stood when its file was written or read: until it makes a step, that is its state.
        self._stands: WeakKeyDictionary[Learner, tuple[int, str | None]] = WeakKeyDictionary()

    def lock(self) -> None:
        """Keep other processes out. Raises RunFolderError where one is in."""
        if self._lock is None:
            self._lock = lock_folder(self._folder)
            for torn in self._folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                torn.unlink(missing_ok=True)

    @property
    def index(self) -> Path:
        """The file that says which states belong together."""
        return self._folder / "index.json"

    def restore(self, learner: Learner) -> None:
        """Put a learner where it stood; nothing if it was never saved. Raises RunFolderError for a torn file."""
        name = self._files.get(learner.name)
        if name is None:
            return
        saved = load_checkpoint(self._folder / name)
        if saved is None:
            raise RunFolderError(
                f"{self._folder / name}: the state is gone; delete {self._folder} and resume: training begins anew"
            )
        learner.restore(saved)
        self._stands[learner] = _at(learner)

    def save(self, learners: Sequence[Learner], *, at_most_often: bool = False) -> None:
        """Write the states of these learners; those that left before keep theirs.

        With `at_most_often`, nothing is written when the last time is only seconds ago, or not long ago for what it
        took.
        """
        began = time.monotonic()
        soon = max(SECONDS_BETWEEN, TIMES_A_SAVE * self._took)
        if at_most_often and self._saved_at is not None and began - self._saved_at < soon:
            return
        self.lock()
        files = dict(self._files)
        for learner in learners:
            # The step at which it failed is the one it was saved at before: a name of its own, or that file would be
            # another than the index means, which is written last.
            failed = ".failed" if learner.failure is not None else ""
            files[learner.name] = name = f"{learner.name}.{learner.step}{failed}.safetensors"
            if self._stands.get(learner) != _at(learner) or self._files.get(learner.name) != name:
                save_checkpoint(self._folder / name, learner.state())
                self._stands[learner] = _at(learner)
        write_atomically(self.index, json.dumps(files, indent=1).encode())
        if self._saved_at is None:  # a run that was killed between the two leaves files that no index names
            known = {path.name for path in self._folder.glob("*.safetensors")}
        else:
            known = set(self._files.values())
        for old in known - set(files.values()):
            (self._folder / old).unlink(missing_ok=True)
        self._files, self._saved_at = files, time.monotonic()
        self._took = self._saved_at - began

    def forget(self, names: Iterable[str]) -> None:
        """Drop the states of learners that nobody will ask for again; those of all others stay as they are."""
        dropped = {name: self._files[name] for name in names if name in self._files}
        if not dropped:
            return
        files = {name: file for name, file in self._files.items() if name not in dropped}
        write_atomically(self.index, json.dumps(files, indent=1).encode())
        for old in dropped.values():
            (self._folder / old).unlink(missing_ok=True)
        self._files = files

    def _read_index(self) -> dict[str, str]:
        path = self._folder / "index.json"
        try:
            files = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RunFolderError(f"{path}: {error.strerror}") from None
        except ValueError:
            files = None
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise RunFolderError(f"{path}: not an index of states; delete {self._folder} and resume")
        return files


def _at(learner: Learner) -> tuple[int, str | None]:
    return learner.step, learner.failure
