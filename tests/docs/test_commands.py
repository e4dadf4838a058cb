"""Every command in the documentation is run, or says why not: those are read by tests/docs/test_not_run.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import COMMANDS, OTHER_SHELLS, ROOT, Block, blocks, command_pages
from tests.docs.stage import STAGES, Server, demo_server, run_page

for program in ("bash", "curl", "make", "sha256sum"):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: no command of the docs is run", allow_module_level=True)


def _commands(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text(encoding="utf-8")) if block.language == COMMANDS]


def _run(page: Path) -> list[Block]:
    return [block for block in _commands(page) if block.not_run is None]


PAGES = {str(page.relative_to(ROOT)): page for page in command_pages()}
WITH_COMMANDS = [name for name, page in PAGES.items() if _run(page)]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with demo_server(tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_commands_of_a_page(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    wanted = _run(PAGES[name])
    server = request.getfixturevalue("demo") if STAGES.get(name, "demo") == "demo" else None
    ended = run_page(name, wanted, server, tmp_path)
    assert ended.code == 0, f"{name}, the block at line {ended.line}:\n{ended.said[-4000:]}"
    assert ended.line == wanted[-1].line, f"{name} ended at line {ended.line}:\n{ended.said[-4000:]}"


@pytest.mark.parametrize("name", PAGES)
def test_a_block_that_is_not_run_says_why(name: str) -> None:
    for block in blocks(PAGES[name].read_text(encoding="utf-8")):
        assert block.language not in OTHER_SHELLS, f"{name}:{block.line}: write ```sh, so that it is run"
        assert block.not_run is None or len(block.not_run) > 5, f"{name}:{block.line}: not-run: but why?"


def test_the_stages_are_for_pages_that_exist() -> None:
    assert not STAGES.keys() - PAGES.keys()


PAGE = """
```sh
GREETING=hello
```
Some words.
```sh
echo $GREETING; false
```
```sh
echo never
```
<!-- not-run: needs a cluster -->
```sh
exit 3
```
```sh not-run: needs a GPU
exit 4
```
"""


def test_a_command_that_fails_is_found_with_its_line(tmp_path: Path) -> None:
    wanted = [block for block in blocks(PAGE) if block.not_run is None]
    (tmp_path / "first").mkdir()
    ended = run_page("docs/redis.md", wanted, None, tmp_path / "first")
    assert (ended.code, ended.line) == (1, 6)
    assert "hello" in ended.said
    assert "never" not in ended.said


def test_the_marks_are_read() -> None:
    assert [block.not_run for block in blocks(PAGE)] == [None, None, None, "needs a cluster", "needs a GPU"]
