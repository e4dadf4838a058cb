import subprocess
import sys
from pathlib import Path

import pytest

import prompt_store
from prompt_store import FileStore, PromptStoreError, open_store

ROOT = Path(__file__).parents[2]

PUBLIC = [
    "MAX_MEMBERS",
    "AliasRecord",
    "BackboneRef",
    "Calibration",
    "Changes",
    "Collected",
    "CorruptVersion",
    "DecoderInput",
    "DigestMismatch",
    "Durability",
    "Event",
    "FileStore",
    "Golden",
    "Head",
    "IncompatiblePrompt",
    "InvalidAlias",
    "InvalidPrompt",
    "InvalidTaskId",
    "InvalidTemplate",
    "LabelEmbeddingHead",
    "LinearHead",
    "LinearLayer",
    "Literal",
    "Manifest",
    "MaskSlot",
    "MaxLength",
    "Member",
    "Moved",
    "NotFound",
    "NotSafetensors",
    "PairSlot",
    "Part",
    "Prompt",
    "PromptStore",
    "PromptStoreError",
    "Published",
    "Receipt",
    "Revision",
    "RevisionConflict",
    "SoftSlot",
    "StackRef",
    "StartSlot",
    "StoreUnavailable",
    "Target",
    "TaskPage",
    "TaskRecord",
    "Template",
    "TextSlot",
    "UnknownAlias",
    "UnknownTask",
    "UnknownVersion",
    "VerbalizerHead",
    "VersionInUse",
    "VersionRecord",
    "check_alias",
    "check_backbone",
    "check_finite_in",
    "check_task_id",
    "decode_prompt",
    "encode_prompt",
    "is_version",
    "join_prompts",
    "open_store",
    "parse_manifest",
    "parse_template",
    "split_members",
    "version_of",
]


def test_the_public_names_are_these() -> None:
    assert prompt_store.__all__ == PUBLIC
    assert all(hasattr(prompt_store, name) for name in PUBLIC)


def test_the_package_loads_no_torch_and_no_http() -> None:
    code = "import sys, prompt_store; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "prompt_store.codec" in loaded
    assert not {"torch", "transformers", "fastapi", "starlette", "httpx", "uvicorn", "requests"} & set(loaded)


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///{tmp}/a", "a"),
        ("file:///{tmp}/a%20b", "a b"),
        ("/{tmp}/a", "a"),
        ("/{tmp}/a%20b", "a%20b"),
        ("/{tmp}/redis:a", "redis:a"),
        ("file://relative/a", "relative/a"),
        ("relative/a", "relative/a"),
    ],
)
async def test_a_url_or_a_path_opens_a_file_store_there(
    url: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(url.replace("{tmp}", str(tmp_path).lstrip("/")))
    assert isinstance(store, FileStore)
    assert not files(tmp_path)
    await store.revision()
    await store.aclose()
    assert files(tmp_path) == {tmp_path / folder / "catalogue.sqlite3"}


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("url", ["s3://bucket", "FILE:///a", "://a", "", "file://"])
def test_another_url_is_refused_naming_what_there_is(url: str) -> None:
    with pytest.raises(PromptStoreError, match=r"file:///?"):
        open_store(url)
