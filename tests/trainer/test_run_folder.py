"""One folder is one training's, whatever kind it is, and whoever comes second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.trainer.test_lock import HOLD
from trainer import RunFolderError, TrainConfig, train
from trainer.reference_folder import ReferenceFolder
from trainer.run_folder import RunFolder

Settings = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "config.toml",
            "",
            r"there is a run in it already; go on \(promptmux train --resume \S+run\) or choose",
        ),
        ("sweep.json", "{}", r"there is a sweep in it already; go on \(promptmux sweep --resume \S+run\) or"),
        (
            "many.json",
            '{"tasks": ["a"]}',
            r"tasks were trained in it already; go on \(promptmux train --resume",
        ),
        ("metrics.json", "{}", r"there are results in it already; choose another --output$"),
    ],
)
def test_what_was_begun_in_a_folder_is_not_mixed_with_another(
    tmp_path: Path, settings: Settings, console: Console, name: str, text: str, says: str
) -> None:
    """A run in a sweep's folder would end it: its metrics.json says that the sweep is finished."""
    folder = tmp_path / "run"
    RunFolder(folder).refuse_taken()
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(RunFolderError, match=says):
        train(settings(method="head-only"), console=console)
    assert (folder / name).read_text() == text


def test_a_finished_sweeps_folder_is_no_ones_either(tmp_path: Path) -> None:
    for name in ("sweep.json", "config.toml", "metrics.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(RunFolderError, match=r"there is a sweep in it already; choose another --output$"):
        RunFolder(tmp_path).refuse_taken()


@pytest.mark.parametrize("name", ["config.toml", "sweep.json", "many.json"])
def test_a_comparison_does_not_end_what_was_begun_in_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(RunFolderError, match=r"already; choose another --output$"):
        ReferenceFolder(tmp_path).claim({})
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_of_two_that_start_at_once_the_second_writes_no_settings(
    tmp_path: Path, settings: Settings, console: Console
) -> None:
    state = tmp_path / "run" / "state"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert first.stdout is not None
    assert first.stdout.readline() == "locked\n"
    try:
        with pytest.raises(RunFolderError, match="trains in it now"):
            train(settings(method="head-only"), console=console)
    finally:
        first.communicate("")
    assert not (tmp_path / "run" / "config.toml").exists()
