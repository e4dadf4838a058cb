"""What no test runs is read: a command of the docs that is marked `not-run` names only what there is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import redis

from loadtest.faults.redis_process import RedisProcess
from tests.deploy.manifests import kubectl as find_kubectl
from tests.docs.known import complaints
from tests.docs.pages import COMMANDS, ROOT, blocks, command_pages, sentences
from tests.docs.shell import commands

GENERATED = ("docs/reference", "docs/results/")  # written from the code that runs it
PROGRAMS = ("curl", "docker compose", "kubectl", "make", "promptmux", "python")
_INLINE = re.compile(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`")
_LEFT_OUT = re.compile(r"[…\[\]]")  # an inline command with a gap in it is none to type

PAGES = {str(page.relative_to(ROOT)): page for page in command_pages()}


def marked(page: str) -> list[list[str]]:
    """The commands of a page's blocks that are marked `not-run`."""
    return [
        words
        for block in blocks(page)
        if block.language == COMMANDS and block.not_run is not None
        for words in commands(block.text)
    ]


def inline(page: str) -> list[list[str]]:
    """The commands that stand in a page's sentences and tables."""
    spans = [" ".join(span.split()) for span in _INLINE.findall(sentences(page))]
    return [words for span in spans if not _LEFT_OUT.search(span) for words in commands(span)]


MARKED = {name: marked(page.read_text(encoding="utf-8")) for name, page in PAGES.items()}
INLINE = {
    name: inline(page.read_text(encoding="utf-8"))
    for name, page in PAGES.items()
    if not name.startswith(GENERATED)
}


def _wrong(found: Sequence[list[str]], *, bare: bool) -> Iterator[str]:
    for words in found:
        yield from (f"{' '.join(words)}: {one}" for one in complaints(words, bare=bare))


def _split(found: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    of_kubectl = [words for words in found if words[0] == "kubectl"]
    return of_kubectl, [words for words in found if words[0] != "kubectl"]


@pytest.mark.parametrize("name", [name for name, found in MARKED.items() if found])
def test_a_block_that_is_not_run_names_what_there_is(name: str) -> None:
    assert list(_wrong(_split(MARKED[name])[1], bare=False)) == []


@pytest.mark.parametrize("name", [name for name, found in INLINE.items() if found])
def test_a_command_in_a_sentence_names_what_there_is(name: str) -> None:
    assert list(_wrong(_split(INLINE[name])[1], bare=True)) == []


@pytest.mark.parametrize(
    "name", [name for name in PAGES if _split([*MARKED[name], *INLINE.get(name, [])])[0]]
)
def test_kubectl_would_find_what_it_is_told(name: str) -> None:
    find_kubectl()
    of_kubectl, in_sentences = _split(MARKED[name])[0], _split(INLINE.get(name, []))[0]
    assert [*_wrong(of_kubectl, bare=False), *_wrong(in_sentences, bare=True)] == []


@pytest.mark.parametrize("name", [name for name, found in MARKED.items() if found])
def test_a_block_that_is_not_run_is_shell(name: str) -> None:
    for block in blocks(PAGES[name].read_text(encoding="utf-8")):
        if block.language == COMMANDS and block.not_run is not None:
            read = subprocess.run(
                ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
            )
            assert (read.returncode, read.stderr) == (0, ""), f"{name}:{block.line}"


def test_redis_knows_every_command_that_it_is_given(tmp_path: Path) -> None:
    given = {
        span.split()[0]
        for page in PAGES.values()
        for span in re.findall(r"\bredis-cli (?:-\S+ )*([A-Z]+[^`\n]*)", page.read_text(encoding="utf-8"))
    }
    assert given
    with RedisProcess(tmp_path) as running, redis.Redis.from_url(running.url) as asked:
        for command in given:
            said = asked.execute_command("COMMAND", "INFO", command)
            assert command.lower() in said, f"redis-cli {command}"
