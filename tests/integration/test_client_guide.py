"""Every block of the client's guide, run against a real server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from client import AdminClient
from tests.integration.conftest import PATIENCE, Serve, ServerProcess
from tests.server.fakes import prompt_bytes

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "client.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def served(serve_package: Serve) -> ServerProcess:
    server = serve_package().ready()
    pairs = prompt_bytes("nli", template="{text} {text_pair}", labels=("entails", "contradicts"))
    with AdminClient(server.admin_url) as admin:
        uploaded = admin.put_version("nli", pairs)
        assert uploaded.created
        admin.move_alias("nli", "current", uploaded.version)
    return server


def test_the_guide_has_blocks() -> None:
    assert [kind for kind, _ in BLOCKS].count("python") >= 6
    assert {kind for kind, _ in BLOCKS} == {"python", "sh"}


@pytest.mark.parametrize("at", range(len(BLOCKS)))
def test_a_block(
    at: int,
    served: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, text = BLOCKS[at]
    (tmp_path / "prompt.safetensors").write_bytes(prompt_bytes(favours=1))
    monkeypatch.chdir(tmp_path)
    if kind == "python":
        here = text.replace("http://127.0.0.1:8000", served.url).replace(
            "http://127.0.0.1:8001", served.admin_url
        )
        exec(compile(here, f"client.md, block {at}", "exec"), {"__name__": "__main__"})
        assert ("print(" in text) == bool(capsys.readouterr().out)
        return
    addresses = {"PROMPTMUX_URL": served.url, "PROMPTMUX_ADMIN_URL": served.admin_url}
    root = str(Path(__file__).parents[2])
    for line in text.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "promptmux"
        done = subprocess.run(
            [sys.executable, "-m", "promptmux", *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, **addresses, "PYTHONPATH": root},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
