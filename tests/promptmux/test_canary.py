"""Splitting and promoting in a store, and the arithmetic of parts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from prompt_store import Target, open_store, version_of
from prompt_store.store import check_targets
from promptmux.commands import canary, promote
from promptmux.commands.aliases import percent
from tests.server.fakes import prompt_bytes

FILES = [prompt_bytes(favours=favours, labels=("a", "b", "c")) for favours in range(3)]
VERSIONS = [version_of(data) for data in FILES]
A, B, C = VERSIONS
shares = st.lists(st.integers(1, 1_000_000), min_size=1, max_size=3).map(
    lambda weights: list(zip(VERSIONS, weights, strict=False))
)


@pytest.mark.parametrize(
    ("before", "version", "part", "after"),
    [
        ([(A, 1)], B, 5, [(A, 19), (B, 1)]),
        ([(A, 95), (B, 5)], B, 50, [(A, 1), (B, 1)]),
        ([(A, 1), (B, 1)], A, 25, [(B, 3), (A, 1)]),
        ([(A, 2), (B, 1)], C, 10, [(A, 6), (B, 3), (C, 1)]),
        ([(A, 1_000_000)], B, 1, [(A, 99), (B, 1)]),
    ],
)
def test_parts(before: list[tuple[str, int]], version: str, part: int, after: list[tuple[str, int]]) -> None:
    assert canary.split(before, version, part) == after


@given(shares, st.sampled_from(VERSIONS), st.integers(1, 99))
def test_every_split_is_one_that_a_store_takes(
    before: list[tuple[str, int]], version: str, part: int
) -> None:
    if [known for known, _ in before] == [version]:
        with pytest.raises(typer.BadParameter):
            canary.split(before, version, part)
        return
    after = canary.split(before, version, part)
    check_targets([Target(*share) for share in after])
    assert after[-1][0] == version
    assert abs(after[-1][1] / sum(weight for _, weight in after) - part / 100) < 0.001
    assert {known for known, _ in before} | {version} == {known for known, _ in after}


def test_what_is_promoted_is_named_or_the_one_of_two_that_was_added_last() -> None:
    assert promote.chosen([(A, 1), (B, 99)], None) == B
    assert promote.chosen([(B, 99), (A, 1)], None) == A
    assert promote.chosen([(A, 1), (B, 99)], A[:6]) == A
    for wrong, version in (
        ([(A, 1)], None), ([(A, 1), (B, 1), (C, 1)], None), ([(A, 1), (B, 1)], C), ([(A, 1), (B, 1)], "")
    ):  # fmt: skip
        with pytest.raises(typer.BadParameter):
            promote.chosen(wrong, version)


def test_percentages_are_short() -> None:
    assert [percent(weight, [(A, 19), (B, 1)]) for weight in (19, 1)] == ["95 %", "5 %"]
    assert percent(1, [(A, 2), (B, 1)]) == "33.3 %"


def test_a_split_in_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"file://{tmp_path / 'store'}"

    async def prepare() -> None:
        store = open_store(url)
        for data in FILES[:2]:
            await store.publish(data)
        await store.set_alias("sentiment", "current", [Target(A)], expected_revision=0)
        await store.aclose()

    asyncio.run(prepare())
    canary.run("sentiment", B[:8], 5, url, alias="current")
    canary.run("sentiment", None, 5, url, alias="current")
    shown = capsys.readouterr().out
    assert shown.count(B) == 2
    assert "95 %" in shown
    with pytest.raises(typer.BadParameter, match="no alias"):
        canary.run("sentiment", B, 5, url, alias="beta")
    with pytest.raises(typer.BadParameter, match="no version"):
        canary.run("sentiment", C, 5, url, alias="current")
    promote.run("sentiment", None, url, alias="current")
    assert f"current leads to {B}" in capsys.readouterr().out
    with pytest.raises(typer.BadParameter, match="all requests already"):
        canary.run("sentiment", B, 5, url, alias="current")

    async def actors() -> list[str]:
        store = open_store(url)
        try:
            return [event.actor for event in await store.history("sentiment")][:2]
        finally:
            await store.aclose()

    assert asyncio.run(actors()) == ["promote", "canary"]
