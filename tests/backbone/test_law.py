"""The law: a row's answer does not depend on its neighbours.

Mixed batches of every family against each row alone, over task mixes, lengths and kinds, with poisoned, empty and
maximal neighbours; and the proof that this test has teeth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import backbone.attention
import backbone.encoder
from backbone import Backbone, Row
from backbone.native import NativeRows, PrefixAddresses, Reach
from backbone.packing import Group
from tests.backbone.families import BOTH, FAMILIES, needs_compiler, tiny
from tests.backbone.law_tasks import KINDS, MAXIMAL, TASKS, TEXTS, Task, poisoned, tasks

EXAMPLES = 210  # for each of the ten families: over 2,000 mixed batches in all
# The stated bounds (docs/decisions): float32 as DESIGN has it; bfloat16 relative to the batch's largest logit.
FP32 = {"atol": 1e-5, "rtol": 1e-4}
BF16_BOUND = 0.06


@dataclass(frozen=True)
class Under:
    """What is tested: a family's tiny model in a dtype, with one of the two attentions."""

    family: str
    attention: str = "eager"
    dtype: str = "float32"

    @property
    def bone(self) -> Backbone:
        return tiny(self.family, self.dtype, self.attention)

    @property
    def tasks(self) -> list[Task]:
        return tasks(self.family, self.dtype, self.attention)

    @property
    def poisoned(self) -> list[Task]:
        return poisoned(self.family, self.dtype, self.attention)


@functools.cache
def alone(under: Under, task: int, text: str) -> torch.Tensor:
    """The row's logits when nothing else is in the batch."""
    own = under.tasks[task]
    with torch.no_grad():
        return under.bone.forward([own.row(under.bone, text)], [own.prompt])[0]


def check(under: Under, picks: list[tuple[int, str]], poison: list[tuple[int, str]] = ()) -> None:
    """Assert that every picked (task, text) scores in the batch as it does alone."""
    bone = under.bone
    members = [under.tasks[t] for t, _ in picks] + [under.poisoned[t] for t, _ in poison]
    texts = [text for _, text in [*picks, *poison]]
    rows = [task.row(bone, text) for task, text in zip(members, texts, strict=True)]
    # Poisoned rows stand among the others, not behind them.
    order = sorted(range(len(rows)), key=lambda at: (at * 7919) % 101)
    with torch.no_grad():
        mixed = bone.forward([rows[at] for at in order], [members[at].prompt for at in order])
    for got, at in zip(mixed, order, strict=True):
        if at >= len(picks):
            assert not torch.isfinite(got).all(), "a poisoned prompt's row must show it"
            continue
        want = alone(under, *picks[at])
        if under.dtype == "float32":
            torch.testing.assert_close(got, want, **FP32)
        else:
            bound = BF16_BOUND * want.abs().max().clamp(min=1.0)
            assert (got - want).abs().max() <= bound
            first, second = want.topk(2).values
            if first - second > 2 * bound:
                assert got.argmax() == want.argmax()


def mixes() -> st.SearchStrategy[list[int]]:
    """Task choices: identical, distinct, uniform and Zipf."""
    count = TASKS
    identical = st.builds(lambda t, n: [t] * n, st.integers(0, count - 1), st.integers(1, 12))
    distinct = st.permutations(range(count)).flatmap(
        lambda p: st.integers(1, count).map(lambda n: list(p[:n]))
    )
    uniform = st.lists(st.integers(0, count - 1), min_size=1, max_size=24)
    zipf = st.integers(0, 2**32 - 1).map(
        lambda seed: list(np.minimum(np.random.default_rng(seed).zipf(1.5, 16) - 1, count - 1))
    )
    return st.one_of(identical, distinct, uniform, zipf)


batches = mixes().flatmap(
    lambda chosen: st.lists(
        st.sampled_from((*TEXTS, MAXIMAL)), min_size=len(chosen), max_size=len(chosen)
    ).map(lambda texts: list(zip(map(int, chosen), texts, strict=True)))
)
poison = st.lists(st.tuples(st.integers(0, 2), st.sampled_from((*TEXTS, MAXIMAL))), max_size=3)
_settings = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_equals_alone(family: str, attention: str) -> None:
    @_settings
    @given(batches, poison)
    def law(picks: list[tuple[int, str]], bad: list[tuple[int, str]]) -> None:
        check(Under(family, attention), picks, bad)

    law()


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_mixed_equals_alone_in_bfloat16(family: str, attention: str) -> None:
    @settings(_settings, max_examples=60)
    @given(batches, poison)
    def law(picks: list[tuple[int, str]], bad: list[tuple[int, str]]) -> None:
        check(Under(family, attention, "bfloat16"), picks, bad)

    law()


# --- teeth ----------------------------------------------------------------------------------------------------------

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


EAGER_MISTAKES = (_shifted_spans, _swapped_slots, _swapped_soft_prompts, _dropped_prefix, _no_padding_mask)
COMPILED_MISTAKES = (
    _shifted_rows,
    _swapped_addresses,
    _swapped_soft_prompts,
    _wrong_layer,
    _forgotten_prefix,
)
MISTAKES = [("eager", mistake) for mistake in EAGER_MISTAKES] + [
    pytest.param("compiled", mistake, marks=needs_compiler) for mistake in COMPILED_MISTAKES
]


@pytest.mark.parametrize(("attention", "mistake"), MISTAKES)
@pytest.mark.parametrize("family", FAMILIES)
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
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "opt"])
def test_teeth_ignored_causality(family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _teeth_ignored(family, attention, monkeypatch, causal=False)


def _teeth_ignored(family: str, attention: str, monkeypatch: pytest.MonkeyPatch, **ignored: object) -> None:
    under = Under(family, attention)
    check(under, EVERYTHING)  # fills the cache of rows alone
    _ignore(monkeypatch, attention, **ignored)
    with pytest.raises(AssertionError):
        check(under, EVERYTHING)
