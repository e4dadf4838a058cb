from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer import RunFolderError
from trainer.state import Checkpoint, load_checkpoint, save_checkpoint, write_atomically


def test_checkpoints_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b/c": torch.tensor(7.0), "d": torch.randn(4, 3).T}
    values = {"loss": 0.1 + 0.2, "step": 3, "points": [{"x": 1e-300}], "text": 'é "'}
    save_checkpoint(tmp_path / "c", Checkpoint(tensors, values))
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded is not None
    assert loaded.values == values
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("data", [b"", b"x", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}"])
def test_what_is_no_checkpoint_is_said_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(RunFolderError, match="and resume: training begins anew"):
        load_checkpoint(tmp_path / "c")


def test_writing_leaves_only_the_whole_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", b"old")
    write_atomically(tmp_path / "f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"new"


def test_what_cannot_be_written_is_one_line_and_leaves_nothing_of_itself(tmp_path: Path) -> None:
    """As on a full disk: it is no defect, and what was saved before can be gone on with."""
    (tmp_path / "taken").mkdir()
    for path, says in ((tmp_path / "taken", "Is a directory"), (tmp_path / "gone" / "f", "No such file")):
        with pytest.raises(RunFolderError, match=f"{path}: {says}"):
            write_atomically(path, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
