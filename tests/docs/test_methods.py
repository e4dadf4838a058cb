"""The defaults on the methods' pages are those of the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

import pytest

from tests.docs.pages import ROOT
from trainer.config import MethodName, Reparameterisation
from trainer.methods import DEFAULTS

PAGES = ROOT / "docs" / "methods"


def _said(method: MethodName) -> dict[str, str]:
    """The second column of a page's table of settings, by the first."""
    text = (PAGES / f"{method}.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", text, re.MULTILINE))


def _rates(cell: str, networks: Mapping[Reparameterisation, float]) -> dict[str, float]:
    """The learning rate of each network: "0.03; with `residual` 0.01" says the default's, then what differs."""
    first, *others = cell.split("; with ")
    named = dict(re.fullmatch(r"`([a-z]+)` ([0-9.]+)", other).groups() for other in others)  # type: ignore[union-attr]
    assert set(named) < set(networks), cell
    return {network: float(named.get(network, first)) for network in networks}


@pytest.mark.parametrize("method", DEFAULTS)
def test_the_defaults_on_a_methods_page_are_the_codes(method: MethodName) -> None:
    said, defaults = _said(method), DEFAULTS[method]
    assert _rates(said["optimiser.prompt_lr"], defaults.networks) == dict(defaults.networks)
    assert said["prompt.num_virtual_tokens"] == str(defaults.num_virtual_tokens)
    if "prompt.init" in said:
        assert said["prompt.init"] == ", ".join(f"`{name}`" for name in defaults.init)
    if "prompt.reparameterisation" in said:
        assert said["prompt.reparameterisation"] == f"`{next(iter(defaults.networks))}`"


def test_the_index_has_each_methods_networks_the_default_first() -> None:
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ((?:`[a-z]+`(?:, )?)+) \|", text, re.MULTILINE)
    known = set(get_args(Reparameterisation))
    told = {method: tuple(re.findall("`([a-z]+)`", cell)) for method, cell in rows}
    told = {method: networks for method, networks in told.items() if known.issuperset(networks)}
    assert told == {method: tuple(defaults.networks) for method, defaults in DEFAULTS.items()}
