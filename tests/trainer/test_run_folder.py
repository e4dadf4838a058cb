"""One folder is one training's, whatever kind it is, and whoever comes second."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.trainer.test_lock import HOLD
from trainer import RunFolderError, TrainConfig, sweep, train
from trainer.grid import Setting
from trainer.reference import run_references
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
    assert {file.name for file in tmp_path.iterdir()} == {name, "state"}  # which has the lock alone


def test_a_comparison_that_was_stopped_keeps_its_folder(
    tmp_path: Path, settings: Settings, console: Console
) -> None:
    folder = ReferenceFolder(tmp_path / "run")
    folder.claim({})
    with pytest.raises(RunFolderError, match=r"there are results in it already; choose another --output$"):
        train(settings(method="head-only"), console=console)
    folder.claim({})  # and the same command goes on


@pytest.mark.parametrize("text", ["not JSON", '{"theme": "dark"}'])
def test_another_programs_settings_are_no_comparison(
    tmp_path: Path, settings: Settings, console: Console, text: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "settings.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"settings\.json: there already, and of something else"):
        ReferenceFolder(folder).claim({})
    assert {file.name for file in folder.iterdir()} == {"settings.json", "state"}
    assert train(settings(method="head-only"), console=console).prompt.is_file()
    assert (folder / "settings.json").read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"'])
def test_a_state_that_belongs_to_nothing_known_is_one_line(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.claim({"the dtype": "float32"})
    folder.identity.write_text(text)
    with pytest.raises(RunFolderError, match=r"identity\.json: not what a run's state belongs to; put back"):
        folder.claim({"the dtype": "float32"})


def test_an_output_that_cannot_be_made_is_named(tmp_path: Path, settings: Settings, console: Console) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunFolderError, match=r"/run: (Not a directory|File exists)$"):
        train(settings(method="head-only"), console=console)


def _train(config: TrainConfig, console: Console) -> None:
    train(config, console=console)


def _sweep(config: TrainConfig, console: Console) -> None:
    sweep([Setting("lr=1", {}, config)], console=console)


def _compare(config: TrainConfig, console: Console) -> None:
    run_references(config, ["head-only"], console=console, folder=Path(config.output))


@pytest.mark.parametrize("begin", [_train, _sweep, _compare])
def test_of_two_that_start_at_once_the_second_writes_no_settings(
    begin: Callable[[TrainConfig, Console], None], tmp_path: Path, settings: Settings, console: Console
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
            begin(settings(method="head-only"), console)
    finally:
        first.communicate("")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("begin", "module"), [(_train, "run"), (_sweep, "successive_halving"), (_compare, "reference")]
)
def test_what_another_began_and_left_while_this_one_loaded_its_backbone_is_kept(
    begin: Callable[[TrainConfig, Console], None], module: str, tmp_path: Path, settings: Settings,
    console: Console, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    at = f"trainer.{module}.{'load_backbone' if module == 'reference' else 'load'}"
    loaded, theirs = pkgutil.resolve_name(at), tmp_path / "run" / "sweep.json"

    def load(*args: object, **named: object) -> object:
        theirs.parent.mkdir()
        theirs.write_text("theirs")
        return loaded(*args, **named)

    monkeypatch.setattr(at, load)
    with pytest.raises(RunFolderError, match="there is a sweep in it already"):
        begin(settings(method="head-only"), console)
    assert theirs.read_text() == "theirs"
    assert {file.name for file in theirs.parent.iterdir()} == {"sweep.json", "state"}
