"""`promptmux similar` as a person uses it, in process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prompt_store import Target, encode_prompt, open_store
from promptmux.__main__ import build
from tests.trainer.test_similarity import prefix, soft


def write(path: Path, task: str, seed: int, count: int = 4) -> bytes:
    made = soft(count, seed)
    data = encode_prompt(made.manifest.model_copy(update={"task_id": task}), made.tensors)
    path.write_bytes(data)
    return data


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = str(tmp_path / "store")

    async def fill() -> None:
        opened = open_store(url)
        made = prefix(4, 0)
        other = encode_prompt(made.manifest.model_copy(update={"task_id": "prefixed"}), made.tensors)
        for data in (
            write(tmp_path / "a", "a", 0),
            write(tmp_path / "b", "b", 1),
            write(tmp_path / "c", "c", 0, 5),
            other,
        ):
            published = await opened.publish(data)
            await opened.set_alias(
                published.task_id, "current", [Target(published.version)], expected_revision=None
            )
        await opened.aclose()

    asyncio.run(fill())
    return url


def similar(*arguments: str) -> str:
    result = CliRunner().invoke(build(), ["similar", *arguments])
    assert result.exit_code in (0, 2), result.output
    return result.output


def test_files_are_compared_with_each_other(tmp_path: Path) -> None:
    for name, seed in (("x", 0), ("y", 1), ("z", 0)):
        write(tmp_path / name, name, seed)
    lines = similar(*(str(tmp_path / name) for name in "xyz")).splitlines()
    assert lines[0].split() == ["prompt", "is", "like", "mean", "pairwise"]
    assert lines[1].split()[:3] == [str(tmp_path / "x"), str(tmp_path / "z"), "1.000"]
    assert len(lines) == 4


def test_one_prompt_is_compared_with_every_task_of_a_store_but_its_own(tmp_path: Path, store: str) -> None:
    lines = similar("a", "--store", store).splitlines()
    assert sorted(line.split()[1] for line in lines[1:3]) == ["b", "c"]
    assert lines[3].startswith("not compared: 1 ")
    assert len(similar(str(tmp_path / "a"), "--store", store, "--top", "1").splitlines()) == 3


def test_what_cannot_be_done_is_said_in_words(tmp_path: Path, store: str) -> None:
    assert "needs others" in similar(str(tmp_path / "a"))
    (tmp_path / "torn").write_bytes(b"x")
    assert "torn is no prompt file: " in " ".join(
        similar(str(tmp_path / "a"), str(tmp_path / "torn")).split()
    )
    assert "name its --store" in similar("a", "b")
    assert "different parts" in " ".join(similar("a", "prefixed", "--store", store).split())
