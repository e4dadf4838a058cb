"""What the trainer tells a person who has to change something; owns the exit codes, knows no data, no torch.

TrainerError                   exit 2   one clear line: what is wrong, where, what to do
 ├ ConfigError                 exit 2   a key, flag or combination that cannot work
 ├ DataError                   exit 2   a file of examples that cannot be learned from
 ├ RunFolderError              exit 2   the run folder is in use, or does not belong to this run
 ├ TrainingFailedError         exit 1   the loss left the finite numbers
 └ TrainingInterruptedError    exit 130 (Ctrl-C) or 143 (SIGTERM): the run folder can be resumed
"""

from __future__ import annotations


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


class RunFolderError(TrainerError):
    """The run folder already holds another run, or holds none to resume."""


class TrainingFailedError(TrainerError):
    """The loss became NaN or infinite."""

    exit_code = 1


class TrainingInterruptedError(TrainerError):
    """A signal ended the run; its state is saved, and the text gives the command that goes on from it."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
