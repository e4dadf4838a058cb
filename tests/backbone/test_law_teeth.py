"""The proof that the law's test has teeth: each mistake that could mix up rows makes it fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import backbone.attention
import backbone.encoder
from backbone import Row
from backbone.native import NativeRows, PrefixAddresses, Reach
from backbone.packing import Group
from tests.backbone.families import BOTH, CAUSAL, FAMILIES, PADDED, PREFIXED, needs_compiler, tiny
from tests.backbone.law_tasks import KINDS, TASKS, TEXTS
from tests.backbone.test_law import Under, check

EVERYTHING = [(task, TEXTS[(task * 5 + 3) % len(TEXTS)]) for task in range(TASKS)] + [
    (0, TEXTS[8]),
    (4, TEXTS[8]),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_swapping_two_prompts_moves_logits(family: str) -> None:
    """Small movements would hide mistakes from a comparison with tolerances."""
    bone, text = tiny(family, attention="eager"), TEXTS[6]
    for first in range(1, len(KINDS)):
        one, two = Under(family).tasks[first], Under(family).tasks[first + len(KINDS)]
        # The same head under both prompts, so that only the soft prompt or prefix can move the logits.
        swapped = replace(two.prompt, head=one.prompt.head, num_labels=one.prompt.num_labels)
        got = bone.forward([one.row(bone, text)] * 2, [one.prompt, swapped])
        assert (got[0] - got[1]).abs().max() >= 0.1, KINDS[first]


def _shifted_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    real = backbone.encoder.pack

    def shifted(*args: object, **kwargs: object) -> object:
        packed = real(*args, **kwargs)  # type: ignore[arg-type]
        for group in packed.groups:
            group.keys = (group.keys - 1).clamp(min=0)
        return packed

    monkeypatch.setattr(backbone.encoder, "pack", shifted)


def _swapped_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    real = backbone.encoder.pack

    def swapped(
        rows: object, soft: object, prefixes: list[object], *rest: object, **kwargs: object
    ) -> object:
        at, other = (i for i, p in enumerate(prefixes) if p.length == 6)  # type: ignore[attr-defined]
        changed = list(prefixes)
        changed[at], changed[other] = changed[other], changed[at]
        return real(rows, soft, changed, *rest, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone.encoder, "pack", swapped)


def _swapped_soft_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = backbone.encoder.pack

    def swapped(rows: list[Row], soft: list[int], *rest: object, **kwargs: object) -> object:
        at, other = (i for i, row in enumerate(rows) if row.lead == 7)
        changed = list(soft)
        changed[at], changed[other] = changed[other], changed[at]
        return real(rows, changed, *rest, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone.encoder, "pack", swapped)


def _dropped_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Group.mask

    def blind(self: Group, **kwargs: object) -> torch.Tensor:
        mask = real(self, **kwargs)  # type: ignore[arg-type]
        full = torch.zeros(*self.keys.shape).unsqueeze(1).unsqueeze(1) if mask is None else mask.clone()
        for row, prefix in enumerate(self.prefixes):
            full[row, ..., :prefix] = float("-inf")
        return full

    monkeypatch.setattr(Group, "mask", blind)


def _no_padding_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "mask", lambda self, **kwargs: None)


def _shifted_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(NativeRows):
        def __init__(self, lengths: list[int], prefixes: list[PrefixAddresses], starts: list[int]) -> None:
            super().__init__(lengths, prefixes, starts)
            self.starts[1:-1] += 1

    monkeypatch.setattr(backbone.encoder, "NativeRows", Shifted)


def _swapped_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(lengths: list[int], prefixes: list[PrefixAddresses], starts: list[int]) -> NativeRows:
        at, other = (i for i, p in enumerate(prefixes) if p.length == 6)
        changed = list(prefixes)
        changed[at], changed[other] = changed[other], changed[at]
        return NativeRows(lengths, changed, starts)

    monkeypatch.setattr(backbone.encoder, "NativeRows", swapped)


def _wrong_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    real = NativeRows.of_layer
    monkeypatch.setattr(NativeRows, "of_layer", lambda self, layer: real(self, layer // 2))


def _forgotten_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(lengths: list[int], prefixes: list[PrefixAddresses], starts: list[int]) -> NativeRows:
        return NativeRows(lengths, [PrefixAddresses()] * len(prefixes), starts)

    monkeypatch.setattr(backbone.encoder, "NativeRows", without)


def _shifted_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    real = backbone.encoder.pack

    def shifted(*args: object, **kwargs: object) -> object:
        packed = real(*args, **kwargs)  # type: ignore[arg-type]
        for group in packed.groups:
            group.queries = (group.queries - 1).clamp(min=0)
        return packed

    monkeypatch.setattr(backbone.encoder, "pack", shifted)


def _all_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "real", lambda self: torch.ones_like(self.queries))


EAGER_MISTAKES = (_shifted_spans, _swapped_slots, _swapped_soft_prompts, _dropped_prefix, _no_padding_mask)
COMPILED_MISTAKES = (
    _shifted_rows,
    _swapped_addresses,
    _swapped_soft_prompts,
    _wrong_layer,
    _forgotten_prefix,
)
PADDED_MISTAKES = (_shifted_queries, _swapped_soft_prompts, _all_real)
MISTAKES = (
    [(family, "eager", mistake) for family in PREFIXED for mistake in EAGER_MISTAKES]
    + [(family, "eager", mistake) for family in PADDED for mistake in PADDED_MISTAKES]
    + [
        pytest.param(family, "compiled", mistake, marks=needs_compiler)
        for family in PREFIXED
        for mistake in COMPILED_MISTAKES
    ]
)


@pytest.mark.parametrize(("family", "attention", "mistake"), MISTAKES)
def test_teeth(
    family: str,
    attention: str,
    mistake: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picks = [pick for pick in EVERYTHING if pick[0] != 4 or pick[1] == TEXTS[8]]
    under = Under(family, attention)
    check(under, picks)  # also fills the cache of rows alone, before the mistake is made
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        check(under, picks)


def _ignore(monkeypatch: pytest.MonkeyPatch, attention: str, **ignored: object) -> None:
    """Let the attention take one argument for another."""
    if attention == "eager":
        mask = Group.mask
        monkeypatch.setattr(Group, "mask", lambda self, **given: mask(self, **{**given, **ignored}))
    else:
        monkeypatch.setattr(backbone.attention, "Reach", lambda *given: replace(Reach(*given), **ignored))


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("family", ["modernbert", "qwen3"])
def test_teeth_ignored_window(family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _teeth_ignored(family, attention, monkeypatch, window=None)


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("family", CAUSAL)
def test_teeth_ignored_causality(family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _teeth_ignored(family, attention, monkeypatch, causal=False)


def _teeth_ignored(family: str, attention: str, monkeypatch: pytest.MonkeyPatch, **ignored: object) -> None:
    under = Under(family, attention)
    check(under, EVERYTHING)  # fills the cache of rows alone
    _ignore(monkeypatch, attention, **ignored)
    with pytest.raises(AssertionError):
        check(under, EVERYTHING)
