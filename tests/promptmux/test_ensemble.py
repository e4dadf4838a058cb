"""`promptmux ensemble` and what `promptmux inspect` shows of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prompt_store import decode_prompt, encode_prompt, version_of
from tests.promptmux.test_commands import PROMPTS, here, one_line, run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo's prompt and two that differ from it in their values."""
    folder = tmp_path_factory.mktemp("files")
    prompt = decode_prompt((PROMPTS / "sentiment.safetensors").read_bytes())
    made = []
    for at in range(3):
        tensors = {name: tensor * tensor.dtype.type(1 + at / 8) for name, tensor in prompt.tensors.items()}
        file = folder / f"{at}.safetensors"
        file.write_bytes(encode_prompt(prompt.manifest, tensors))
        made.append(str(file))
    return made


def test_files_are_joined_and_shown(files: list[str], tmp_path: Path) -> None:
    output = str(tmp_path / "joint.safetensors")
    made = run("ensemble", *files, "--output", output)
    assert made.returncode == 0, made.stderr
    data = Path(output).read_bytes()
    assert f"{output}: version {version_of(data)}" in made.stdout
    shown = here("inspect", output).stdout
    assert "60 (20 in each of 3 members)" in shown
    for at, file in enumerate(files):
        assert f"member {at}" in shown
        assert version_of(Path(file).read_bytes())[:12] in shown
    assert len(json.loads(here("inspect", "--json", output).stdout)["members"]) == 3
    assert "is there already: name another, or --force" in one_line(
        here("ensemble", *files, "--output", output)
    )
    assert here("ensemble", *files[:2], "--output", output, "--force").returncode == 0
    assert len(decode_prompt(Path(output).read_bytes()).manifest.members) == 2


def test_refusals_name_the_file_and_write_none(files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "joint.safetensors"
    other = str(PROMPTS / "topic.safetensors")
    refused = one_line(here("ensemble", files[0], other, "--output", str(output)))
    assert f"{other} cannot join {files[0]}: they differ in task_id, labels" in refused
    assert "2 to 16 members, got 1" in one_line(here("ensemble", files[0], "--output", str(output)))
    assert "absent" in one_line(here("ensemble", files[0], str(tmp_path / "absent"), "--output", str(output)))
    assert not output.exists()
