"""Which file is meant: a run folder stands for its prompt, and a bare name may be the id of a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptmux.commands.files import named_file, prompt_file


def test_a_run_folder_is_its_prompt_and_a_bare_name_may_be_a_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film").mkdir()
    assert prompt_file(Path("film")) == Path("film")  # no prompt is in it
    (tmp_path / "film" / "prompt.safetensors").write_bytes(b"")
    inside = Path("film") / "prompt.safetensors"
    assert prompt_file(Path("film")) == named_file("./film") == inside
    assert named_file("film") == Path("film")
    assert prompt_file(inside) == named_file(str(inside)) == inside
    assert named_file("gone") == Path("gone")
