from __future__ import annotations

import subprocess
import sys

import pytest

import trainer


def test_exports() -> None:
    assert trainer.__all__ == [
        "Columns", "ConfigError", "DataConfig", "DataError", "Example", "HeadConfig", "Helper", "LabelScores",
        "ManyConfig", "ManyResult", "NotAllPublishedError", "NotBetterError", "OptimiserConfig", "PromptConfig",
        "Publication", "RanksError", "RunFolderError", "RunResult", "Scores", "TaskData", "TrainConfig", "TrainerError",
        "TrainingFailedError", "TrainingInterruptedError", "evaluate", "is_many", "is_many_folder",
        "join", "load_config", "load_examples", "load_many", "plan", "publish", "read_examples", "resume",
        "resume_many", "resume_sweep", "sweep", "to_toml", "train", "train_many",
    ]  # fmt: skip
    assert all(hasattr(trainer, name) for name in trainer.__all__)


def test_who_publishes_does_not_wait_for_torch() -> None:
    code = "import sys, trainer; trainer.publish; assert 'torch' not in sys.modules; trainer.train; trainer.evaluate"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trainer.nothing  # noqa: B018
