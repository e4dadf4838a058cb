"""A reader is told which lines keep their terminal: what is typed after them there is never read."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import COMMANDS, ROOT, Block, blocks, command_pages

_STAYS = re.compile(r"promptmux serve (?!.*--help)|kubectl .*port-forward|haproxy -db|make run\b")
_AROUND = 5  # lines of a page before a block, and after it, that speak of it
PAGES = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in command_pages()}


def untold(page: str, block: Block) -> list[str]:
    """The lines of a block that stay in the foreground without a word on terminals."""
    lines, end = page.splitlines(), block.line + block.text.count("\n") + 1
    before, after = lines[max(block.line - 1 - _AROUND, 0) : block.line - 1], lines[end : end + _AROUND]
    if any("terminal" in line for line in [*before, *after]):
        return []
    typed = block.text.replace("\\\n", " ").splitlines()
    return [
        line for line in typed if _STAYS.search(line) and not line.endswith("&") and "terminal" not in line
    ]


@pytest.mark.parametrize("name", PAGES)
def test_a_command_that_keeps_its_terminal_is_said_to(name: str) -> None:
    found = [block for block in blocks(PAGES[name]) if block.language == COMMANDS]
    assert [line for block in found for line in untold(PAGES[name], block)] == []


def test_one_that_is_not_said_is_found() -> None:
    page = "\n\n\n\n\n\nSo:\n```sh\npromptmux serve --port 1\nkubectl port-forward x 1 &\nls\n```\n"
    (block,) = blocks(page)
    assert untold(page, block) == ["promptmux serve --port 1"]
    assert untold(page.replace("So:", "In one terminal:"), block) == []
    assert untold(page + "In another terminal:\n", block) == []
