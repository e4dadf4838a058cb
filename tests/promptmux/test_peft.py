"""`import-peft` and `export-peft` as commands: files, several targets, and errors of one line."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from prompt_store import open_store
from promptmux.__main__ import main
from tests.trainer.peft_folders import adapter, base


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run `promptmux` in a folder of its own: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["promptmux", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_one_file_for_several_stores(run, tmp_path: Path) -> None:
    adapter(tmp_path / "reviews", "PROMPT_TUNING", "bert")
    targets = [str(tmp_path / "one"), f"file://{tmp_path / 'two'}"]
    publish = [word for target in targets for word in ("--publish", target)]
    code, out, _ = run("import-peft", "reviews", "--labels", "a, b,c,d,e,f,g", *publish)
    assert code == 0
    assert out.count("published reviews") == 2
    assert (tmp_path / "reviews.safetensors").is_file()

    async def labels(target: str) -> list[str]:
        store = open_store(target)
        try:
            return list((await store.task("reviews")).aliases)
        finally:
            await store.aclose()

    assert [asyncio.run(labels(target)) for target in targets] == [["current"]] * 2
    # Once more changes nothing; other labels would be another file.
    assert run("import-peft", "reviews", "--labels", "a,b,c,d,e,f,g")[0] == 0
    before = (tmp_path / "reviews.safetensors").read_bytes()
    code, _, err = run("import-peft", "reviews", "--labels", "t,u,v,w,x,y,z")
    assert code == 2
    assert "there already" in err
    assert (tmp_path / "reviews.safetensors").read_bytes() == before


def test_export_and_its_errors(run, tmp_path: Path) -> None:
    adapter(tmp_path / "reviews", "PROMPT_TUNING", "bert")
    where = str(base("bert"))
    assert run("import-peft", "reviews")[0] == 0
    code, out, _ = run("export-peft", "reviews.safetensors", "out", "--backbone", where)
    assert code == 0
    assert "SEQ_CLS" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    code, _, err = run("export-peft", "reviews.safetensors", "out", "--backbone", where)
    assert (code, err.count("\n")) == (2, 1)
    assert run("export-peft", "nothing.safetensors", "elsewhere")[0] == 2
    code, _, err = run("export-peft", "out/adapter_model.safetensors", "elsewhere")
    assert code == 2
    assert "adapter_model.safetensors is no prompt file" in " ".join(err.split())
    assert "promptmux import-peft" in " ".join(err.split())
    code, _, err = run("export-peft", "reviews.safetensors", "elsewhere", "--backbone", "minilm")
    assert (code, err.count("\n")) == (2, 1)
    assert "fingerprint" in err or "expects" in err


def test_errors_of_import_are_one_line(run, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    code, out, err = run("import-peft", "lora")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "promptmux train" in err
    assert run("import-peft", "nowhere")[0] == 2
    for words in ("good", "a=", "=good", ","):
        assert run("import-peft", "lora", "--words", words)[0] == 2
    assert run("import-peft", "lora", "--words", "a=b", "--words", "a=c")[0] == 2
    assert list(tmp_path.glob("*.safetensors")) == []
