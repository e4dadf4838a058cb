"""What the trainer tells a person who has to change something; owns the exit codes, knows no data, no torch.

TrainerError                   exit 2   one clear line: what is wrong, where, what to do
 ├ ConfigError                 exit 2   a key, flag or combination that cannot work
 ├ DataError                   exit 2   a file of examples that cannot be learned from
 ├ AdapterError                exit 2   a PEFT folder or prompt file that does not go over to the other side
 ├ RunFolderError              exit 2   the run folder is in use, or does not belong to this run
 ├ NotPublishedError           exit 1   the store or the server did not take a prompt file
 ├ NotBetterError              exit 1   a prompt that does not beat majority and head only is not published
 ├ NotAllPublishedError        exit 1   some of several prompts were not published; what was wrong is said of each
 ├ TrainingFailedError         exit 1   numbers that are not finite, no memory for a step, or tasks of many that failed
 ├ RanksError                  exit 1   another process of the run failed, is gone, or never came
 └ TrainingInterruptedError    exit 130 (Ctrl-C) or 143 (SIGTERM): the run folder can be resumed
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TrainerError(Exception):
    """The root: its text is one line for a person; the command line prints it and exits with `exit_code`.

    `advice`, where there is any, is another line: what to do.
    """

    exit_code = 2
    advice: str = ""


class ConfigError(TrainerError):
    """A setting that is unknown, of the wrong type, or does not go with another."""


class DataError(TrainerError):
    """Examples that cannot be read or learned from; the text names file, line number and remedy."""


class AdapterError(TrainerError):
    """What PEFT wrote cannot be a prompt file, or the prompt cannot be what PEFT reads; the text says why."""


class RunFolderError(TrainerError):
    """The run folder already holds another run, or holds none to resume."""


class NotPublishedError(TrainerError):
    """A store or a server could not be reached, or did not take the file. `advice` says what to do."""

    exit_code = 1


class NotBetterError(TrainerError):
    """The prompt does not beat majority and head only on dev: it was not published. `advice` says what to do."""

    exit_code = 1


class NotAllPublishedError(TrainerError):
    """Some of several prompts were not published; each had its own line."""

    exit_code = 1


class TrainingFailedError(TrainerError):
    """A loss, gradient or score that is not finite, too little memory for a step, or some of many tasks failed."""

    exit_code = 1


class RanksError(TrainerError):
    """One of several processes failed, is gone, or never came; what was saved last can be gone on with."""

    exit_code = 1


class TrainingInterruptedError(TrainerError):
    """A signal ended the run; its state is saved, and the text gives the command that goes on from it."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def named(what: str) -> Iterator[None]:
    """What fails in here says of which of several things it is: "task reviews", "setting prompt_lr=0.02"."""
    try:
        yield
    except (TrainingInterruptedError, RanksError):
        raise
    except TrainerError as error:
        error.args = (f"{what}: {error}",)
        raise
