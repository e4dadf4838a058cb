"""How the compiled attention is built, and what happens where it cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from backbone import compiler
from backbone.compiler import load_native
from backbone.errors import NativeUnavailable
from tests.backbone.families import checkpoint, needs_compiler


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeUnavailable, match=r"no C\+\+ compiler"):
        load_native(tmp_path, 8)
    from backbone import load_backbone

    bone = load_backbone(str(checkpoint("bert")), device="cpu", dtype="float32", cache_dir=tmp_path)
    assert "attention" not in bone.kernels
    with pytest.raises(NativeUnavailable):
        load_backbone(str(checkpoint("bert")), device="cpu", cache_dir=tmp_path, kernels="required")


@needs_compiler
def test_a_source_that_does_not_compile_names_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is no program")
    monkeypatch.setattr(compiler, "SOURCE", broken)
    with pytest.raises(NativeUnavailable, match=r"failed: .*broken\.cpp:1:1: error"):
        load_native(tmp_path / "kernels", 8)
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == []


@needs_compiler
def test_a_torn_library_in_the_cache_is_made_anew(tmp_path: Path) -> None:
    load_native(tmp_path / "one", 8)
    (library,) = (tmp_path / "one").glob("*.so")
    torn = tmp_path / "two" / library.name
    shutil.copytree(tmp_path / "one", torn.parent)
    whole = library.read_bytes()
    # The right length with zeros at its end: what a power cut may leave, and what would end a process that loads it.
    torn.write_bytes(whole[:5000] + bytes(len(whole) - 5000))
    load_native(tmp_path / "two", 8)
    assert torn.read_bytes().rstrip(b"\0")[5000:]


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NativeUnavailable):
        load_native(tmp_path / "file", 8)


@needs_compiler
def test_wider_heads_than_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailable, match="wider than 128"):
        load_native(tmp_path, 129)
