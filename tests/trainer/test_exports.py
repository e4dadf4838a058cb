from __future__ import annotations

import trainer


def test_exports() -> None:
    assert trainer.__all__ == [
        "Columns", "ConfigError", "DataConfig", "DataError", "Example", "HeadConfig", "LabelScores", "OptimiserConfig",
        "PromptConfig", "Publication", "RunFolderError", "RunResult", "Scores", "TaskData", "TrainConfig",
        "TrainerError", "TrainingFailedError", "TrainingInterruptedError", "evaluate", "load_config", "load_examples",
        "publish", "read_examples", "resume", "to_toml", "train",
    ]  # fmt: skip
    assert all(hasattr(trainer, name) for name in trainer.__all__)
