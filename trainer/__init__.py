"""Learns prompts offline from files of examples, evaluates them, and publishes them. Never imports the
server.
"""

import importlib
from typing import TYPE_CHECKING, Any

from trainer.config import DataConfig, HeadConfig, OptimiserConfig, PromptConfig, TrainConfig
from trainer.config_file import load_config, to_toml
from trainer.data import TaskData, load_examples
from trainer.errors import (
    ConfigError,
    DataError,
    NotAllPublishedError,
    NotBetterError,
    RanksError,
    RunFolderError,
    TrainerError,
    TrainingFailedError,
    TrainingInterruptedError,
)
from trainer.many_config import ManyConfig, is_many, load_many
from trainer.publish import Publication, publish
from trainer.scores import LabelScores, Scores
from trainer.sources import Columns, Example, read_examples

if TYPE_CHECKING:
    from trainer.evaluation import evaluate
    from trainer.grid import plan
    from trainer.many import ManyResult, is_many_folder, resume_many, train_many
    from trainer.processes import Helper, join
    from trainer.run import RunResult, resume, train
    from trainer.successive_halving import resume_sweep, sweep

__all__ = [
    "Columns",
    "ConfigError",
    "DataConfig",
    "DataError",
    "Example",
    "HeadConfig",
    "Helper",
    "LabelScores",
    "ManyConfig",
    "ManyResult",
    "NotAllPublishedError",
    "NotBetterError",
    "OptimiserConfig",
    "PromptConfig",
    "Publication",
    "RanksError",
    "RunFolderError",
    "RunResult",
    "Scores",
    "TaskData",
    "TrainConfig",
    "TrainerError",
    "TrainingFailedError",
    "TrainingInterruptedError",
    "evaluate",
    "is_many",
    "is_many_folder",
    "join",
    "load_config",
    "load_examples",
    "load_many",
    "plan",
    "publish",
    "read_examples",
    "resume",
    "resume_many",
    "resume_sweep",
    "sweep",
    "to_toml",
    "train",
    "train_many",
]

# What needs torch, whose import takes seconds: who publishes a file, or reads one of examples, does not wait for it.
_WITH_TORCH = {
    "Helper": "trainer.processes",
    "ManyResult": "trainer.many",
    "RunResult": "trainer.run",
    "evaluate": "trainer.evaluation",
    "is_many_folder": "trainer.many",
    "join": "trainer.processes",
    "plan": "trainer.grid",
    "resume": "trainer.run",
    "resume_many": "trainer.many",
    "resume_sweep": "trainer.successive_halving",
    "sweep": "trainer.successive_halving",
    "train": "trainer.run",
    "train_many": "trainer.many",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WITH_TORCH[name]), name)
