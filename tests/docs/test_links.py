"""No link and no picture of any Markdown file leads nowhere, and no page of docs/ is lost."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import ROOT, markdown_files, unfenced

_INLINE = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_BY_NAME = re.compile(r"^\s*\[[^\]]+\]:\s*(\S+)", re.M)
_HTML = re.compile(r"""(?:src|href)=["']([^"']+)["']""")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.I)


def targets(text: str) -> list[str]:
    """Where a page's links and pictures lead, but for those that leave the project."""
    plain = unfenced(text)
    found = [match for form in (_INLINE, _BY_NAME, _HTML) for match in form.findall(plain)]
    return [target for target in found if not _ELSEWHERE.match(target)]


def anchors(page: Path) -> set[str]:
    """What a page's headings are linked by, as GitHub makes it."""
    heads = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", page.read_text(encoding="utf-8"), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in plain}


def dead(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    lost = []
    for target in targets(page.read_text(encoding="utf-8")):
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            lost.append(target)
    return lost


@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert dead(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other page.md").write_text("# A *Title*, here\n")
    page.write_text(
        "# Own\n[a](other%20page.md#a-title-here) [b](#own) ![c](none.png) [d](gone.md) `[e](code.md)`\n"
        "[f](other%20page.md#nowhere) [g](https://example.org/x)\n```\n[h](fenced.md)\n```\n[i]: by-name.md\n"
    )
    assert dead(page) == ["none.png", "gone.md", "other%20page.md#nowhere", "by-name.md"]


@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"\btests/[\w/.-]+\.py\b", page.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name
