"""docs/reference/ and the index say what the code says."""

from __future__ import annotations

import pytest

from scripts import reference, reference_words
from tests.docs.pages import ROOT


@pytest.mark.parametrize("name", reference.PAGES)
def test_no_page_is_stale(name: str) -> None:
    written = (ROOT / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), f"{name} is stale: run python scripts/reference.py"


def test_a_field_without_words_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {name: said for name, said in reference_words.MANIFEST.items() if name != "golden[].label"}
    monkeypatch.setattr(reference_words, "MANIFEST", fewer)
    with pytest.raises(reference.Mismatch, match=r"golden\[\]\.label"):
        reference.prompt_file_page()


def test_an_error_without_advice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {code: said for code, said in reference_words.WHAT_TO_DO.items() if code != "overloaded"}
    monkeypatch.setattr(reference_words, "WHAT_TO_DO", fewer)
    with pytest.raises(reference.Mismatch, match="overloaded"):
        reference.errors_page()


def test_a_route_without_codes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {route: codes for route, codes in reference_words.ROUTES.items() if route != "POST /classify"}
    monkeypatch.setattr(reference_words, "ROUTES", fewer)
    with pytest.raises(reference.Mismatch, match="POST /classify"):
        reference.routes_page()
