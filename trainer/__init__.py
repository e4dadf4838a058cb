"""Learns prompts offline from files of examples, evaluates them, and publishes them. Never imports the
server.
"""

import importlib
from typing import TYPE_CHECKING, Any

from trainer.config import (
    DataConfig,
    HeadConfig,
    OptimiserConfig,
    PromptConfig,
    TrainConfig,
    load_config,
    to_toml,
)
from trainer.data import TaskData, load_examples
from trainer.errors import (
    ConfigError,
    DataError,
    RunFolderError,
    TrainerError,
    TrainingFailedError,
    TrainingInterruptedError,
)
from trainer.publish import Publication, publish
from trainer.scores import LabelScores, Scores
from trainer.sources import Columns, Example, read_examples

if TYPE_CHECKING:
    from trainer.evaluation import evaluate
    from trainer.run import RunResult, resume, train

__all__ = [
    "Columns",
    "ConfigError",
    "DataConfig",
    "DataError",
    "Example",
    "HeadConfig",
    "LabelScores",
    "OptimiserConfig",
    "PromptConfig",
    "Publication",
    "RunFolderError",
    "RunResult",
    "Scores",
    "TaskData",
    "TrainConfig",
    "TrainerError",
    "TrainingFailedError",
    "TrainingInterruptedError",
    "evaluate",
    "load_config",
    "load_examples",
    "publish",
    "read_examples",
    "resume",
    "to_toml",
    "train",
]

# What needs torch, whose import takes seconds: who publishes a file, or reads one of examples, does not wait for it.
_WITH_TORCH = {
    "RunResult": "trainer.run",
    "evaluate": "trainer.evaluation",
    "resume": "trainer.run",
    "train": "trainer.run",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WITH_TORCH[name]), name)
