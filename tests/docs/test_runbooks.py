"""What a runbook has a reader look for is what the code says: events of the log, settings, error codes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT, sentences
from tests.docs.test_not_run import PAGES, marked

PLACES = [*(name for name in PAGES if name.startswith("docs/runbooks/")), "docs/guides/rollback.md"]
# Names of others. Metrics are looked at by tests/monitoring.
_FOREIGN = re.compile(r"promptmux_\w+|container_\w+|runbook_url")
_NAME = re.compile(r"(?<![\w.-])[a-z]+(?:_[a-z]+)+(?![\w.-])")


@pytest.fixture(scope="module")
def code() -> str:
    folders = ("backbone", "prompt_store", "promptmux", "server")
    return "\n".join(file.read_text("utf-8") for one in folders for file in (ROOT / one).rglob("*.py"))


def names(page: str) -> Iterator[str]:
    """What a page has a reader look for: in `grep`, and in its sentences' inline code."""
    said = [word for words in marked(page) if words[0] == "grep" for word in words[1:]]
    for span in [*said, *re.findall(r"`([^`\n]+)`", sentences(page))]:
        yield from (name for name in _NAME.findall(span) if not _FOREIGN.fullmatch(name))


@pytest.mark.parametrize("name", PLACES)
def test_what_a_runbook_names_is_in_the_code(name: str, code: str) -> None:
    found = set(names(PAGES[name].read_text(encoding="utf-8")))
    assert [one for one in sorted(found) if not re.search(rf"\b{one}\b", code)] == []


def test_names_are_found_in_commands_and_in_sentences() -> None:
    page = (
        "`a_setting` is not `promptmux_ready` or `docs/some_file.md`\n"
        "```sh not-run: needs a cluster\nkubectl logs POD | grep -E 'one_event|other_event'\n```\n"
    )
    assert list(names(page)) == ["one_event", "other_event", "a_setting"]


def test_prompts_are_copied_out_of_the_folder_that_servers_keep_them_in() -> None:
    page = PAGES["docs/runbooks/PromptmuxStoreHistoryLost.md"].read_text(encoding="utf-8")
    settings = (ROOT / "deploy/k8s/base/settings.env").read_text(encoding="utf-8")
    (folder,) = re.findall(r"^PROMPTMUX_CACHE_DIR=(.*)$", settings, re.M)
    (copied,) = re.findall(r"cp POD:(\S+)", page)
    assert copied == f"{folder}/prompts"  # as server/app.py has it
