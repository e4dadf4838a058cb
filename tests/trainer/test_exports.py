from __future__ import annotations

import subprocess
import sys

import pytest

import trainer


def test_exports() -> None:
    assert trainer.__all__ == [
        "Columns", "ConfigError", "DataConfig", "DataError", "Example", "HeadConfig", "LabelScores", "OptimiserConfig",
        "PromptConfig", "Publication", "RunFolderError", "RunResult", "Scores", "TaskData", "TrainConfig",
        "TrainerError", "TrainingFailedError", "TrainingInterruptedError", "evaluate", "load_config", "load_examples",
        "publish", "read_examples", "resume", "to_toml", "train",
    ]  # fmt: skip
    assert all(hasattr(trainer, name) for name in trainer.__all__)


def test_who_publishes_does_not_wait_for_torch() -> None:
    code = "import sys, trainer; trainer.publish; assert 'torch' not in sys.modules; trainer.train; trainer.evaluate"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trainer.nothing  # noqa: B018
