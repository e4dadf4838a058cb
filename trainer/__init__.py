"""Learns prompts offline from files of examples, evaluates them, and publishes them. Never imports the
server.
"""

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
from trainer.evaluate import evaluate
from trainer.publish import Publication, publish
from trainer.run import RunResult, resume, train
from trainer.scores import LabelScores, Scores
from trainer.sources import Columns, Example, read_examples

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
