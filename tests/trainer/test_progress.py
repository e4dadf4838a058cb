from __future__ import annotations

import io
from types import SimpleNamespace

from rich.console import Console

from trainer.progress import TrainingProgress


def test_only_those_that_are_trained_now_have_a_bar() -> None:
    one, other = (
        SimpleNamespace(name=f"seed-{seed}", schedule=SimpleNamespace(steps=9), step=0) for seed in (0, 1)
    )
    screen = Console(file=io.StringIO(), width=100, force_terminal=True)
    progress = TrainingProgress(screen)

    def shown() -> str:
        with screen.capture() as captured:
            screen.print(progress._progress)
        return captured.get()

    progress.admitted(one)  # type: ignore[arg-type]
    progress.admitted(other)  # type: ignore[arg-type]
    assert "seed 0" in shown()
    progress.left(one)  # type: ignore[arg-type]
    assert "seed 0" not in shown()
    assert "seed 1" in shown()
    progress.admitted(one)  # type: ignore[arg-type]  # a sweep's setting that goes on
    assert "seed 0" in shown()
