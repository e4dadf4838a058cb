"""What the doctor says of a machine: of this one, and of those that lack something."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from prompt_store.finding import Finding
from promptmux import machine


def found(**settings: str) -> dict[str, Finding]:
    findings = machine.examine_machine(**settings)
    assert all(bool(one.advice) == (one.verdict != "ok") for one in findings)
    return {one.name: one for one in findings}


def test_this_machine_can_serve() -> None:
    findings = found(device="cpu")
    assert findings["versions"].verdict == findings["device"].verdict == "ok"
    assert f"torch {torch.__version__}" in findings["versions"].found
    assert findings["device"].found.startswith(("cpu, bfloat16", "cpu, float32"))


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cpu" in found(device="cuda")["device"].advice
    assert found(device="toaster")["device"].verdict == "problem"


def test_versions_below_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"promptmux": ["torch>=99,<100", "httpx>=0.28", 'fastapi>=99; extra == "trainer"', "nosuch>=1"]}
    monkeypatch.setattr(machine, "requires", lambda name: wanted.get(name))
    finding = found()["versions"]
    assert finding.verdict == "problem"
    assert "nosuch is missing" in finding.found
    assert finding.advice == "pip install 'torch<100,>=99' 'nosuch>=1'"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert found(device="cpu")["compiler"].verdict == "warning"
    assert found(device="cpu", kernels="required")["compiler"].verdict == "problem"
    assert found(device="cpu", kernels="off")["compiler"].verdict == "ok"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert found()["cache folder"].verdict == "ok"
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert found()["cache folder"].verdict == "warning"


@pytest.mark.parametrize(
    ("soft", "verdict"),
    [(100, "problem"), (1024, "warning"), (4096, "ok"), (resource.RLIM_INFINITY, "ok")],
)
def test_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, verdict: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 524_288))
    finding = found()["open files"]
    assert finding.verdict == verdict
    assert verdict == "ok" or "ulimit -n 65536" in finding.advice


def test_memory_is_the_containers_where_it_has_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert machine.free_memory(meminfo, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1500\n")
    assert machine.free_memory(meminfo, tmp_path) == 2500
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory(meminfo, tmp_path) == 8000 * 1024
    assert machine.free_memory(tmp_path / "absent", tmp_path) is None


@pytest.mark.parametrize(
    ("free", "verdict"), [(2**28, "problem"), (2**30, "warning"), (2**32, "ok"), (None, "ok")]
)
def test_little_memory(monkeypatch: pytest.MonkeyPatch, free: int | None, verdict: str) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda *_: free)
    assert found()["free memory"].verdict == verdict
