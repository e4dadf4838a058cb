"""The law over encoder-decoders: rows with and without a decoder, and with prefixes of every stack, in one batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings

import backbone.encoder_decoder
from backbone import Backbone
from backbone.packing import Group
from backbone.relative import RowBias
from tests.backbone.law_tasks import TEXTS, Task
from tests.backbone.prompts import tensors
from tests.backbone.seq2seq import STACKS, prefix, reading, tiny
from tests.backbone.test_law import Under, _settings, batches, check, poison

TESTED = ("t5", "bart")
CLOZE = {"type": "verbalizer", "words": (("bad", "terrible"), ("great",), ("fine",))}
# What the decoder reads, its position offset, soft tokens, prefix tokens, and the stacks that have them.
KINDS: tuple[tuple[str | None, int, int, int, tuple[str, ...]], ...] = (
    (None, 0, 0, 0, ()), (None, 0, 3, 0, ()), (None, 0, 0, 4, ("encoder",)), (None, 0, 2, 3, ("encoder",)),
    ("start", 0, 0, 0, ()), ("start", 0, 0, 4, STACKS), ("start", 6, 0, 6, ("decoder",)),
    ("start", 0, 3, 2, ("cross",)), ("start", 0, 0, 6, ("encoder", "cross")),
    ("mask", 0, 0, 0, ()), ("mask", 0, 0, 3, STACKS), ("mask", 2, 0, 2, ("decoder", "cross")),
    ("copy", 0, 0, 0, ()), ("copy", 0, 0, 5, STACKS), ("copy", 6, 0, 6, ("decoder",)), ("copy", 0, 4, 2, ("cross",)),
    ("copy", 0, 0, 3, ("encoder",)),
    # Prefixes that end behind the place where other rows begin.
    ("start", 9, 0, 3, ("decoder",)), ("start", 60, 0, 3, ("decoder",)),
)  # fmt: skip


@functools.cache
def _tasks(family: str, dtype: str) -> list[Task]:
    bone, made = tiny(family, dtype), []
    for at, (reads, offset, soft, length, stacks) in enumerate(KINDS):
        labels = 2 + at % 4
        pooling: Any = (-1, "mean", 1)[at % 3] if reads in (None, "copy") else "last"
        own = reading(bone, reads, offset=offset, soft=soft, labels=labels, pooling=pooling)
        weights = tensors(bone, soft=soft, labels=labels, seed=at) | prefix(bone, stacks, length, at)
        made.append(Task(own, bone.bind(own, weights)))
    for reads, template in (
        ("start", "{text} {mask}"),
        ("mask", "{text} it was {mask} ."),
        ("copy", "{text} {mask} ."),
    ):
        own = reading(bone, reads, template=template, pooling="mask", labels=3, head=CLOZE)
        made.append(Task(own, bone.bind(own, prefix(bone, STACKS, 2, 50))))
    return made


@functools.cache
def _poisoned(family: str, dtype: str) -> list[Task]:
    """A soft prompt, a decoder's prefix and a cross prefix that are NaN or infinite."""
    bone, made = tiny(family, dtype), []
    for soft, stacks, value in (
        (3, (), float("nan")),
        (0, ("decoder",), float("nan")),
        (0, ("cross",), float("inf")),
    ):
        own = reading(bone, "copy", soft=soft)
        weights = tensors(bone, soft=soft) | prefix(bone, stacks, 3, 1)
        broken = {n: t if n.startswith("head") else torch.full_like(t, value) for n, t in weights.items()}
        made.append(Task(own, bone.bind(own, broken)))
    return made


@dataclass(frozen=True)
class Pair(Under):
    """An encoder-decoder; `test_law.check` asks it for everything."""

    @property
    def bone(self) -> Backbone:
        return tiny(self.family, self.dtype)

    @property
    def tasks(self) -> list[Task]:
        return _tasks(self.family, self.dtype)

    @property
    def poisoned(self) -> list[Task]:
        return _poisoned(self.family, self.dtype)


@pytest.mark.parametrize(("family", "dtype"), [("t5", "float32"), ("bart", "float32"), ("t5", "bfloat16")])
def test_mixed_equals_alone(family: str, dtype: str) -> None:
    @settings(_settings, max_examples=30 if dtype == "float32" else 15)
    @given(batches, poison)
    def law(picks: list[tuple[int, str]], bad: list[tuple[int, str]]) -> None:
        under = Pair(family, dtype=dtype)
        check(under, [(at % len(under.tasks), text) for at, text in picks], bad)

    law()


# --- teeth ----------------------------------------------------------------------------------------------------------

EVERYTHING = [(task, TEXTS[(task * 5 + 3) % len(TEXTS)]) for task in range(len(KINDS) + 3)] + [
    (0, TEXTS[8]),
    (5, TEXTS[8]),
]


def test_a_prefix_far_behind_the_start_leaves_its_neighbours_alone() -> None:
    """T5's table of biases must reach as far as the longest row, whoever is beside it."""
    far = next(at for at, kind in enumerate(KINDS) if kind[1] == 60)
    reader = KINDS.index(("copy", 0, 0, 0, ()))
    check(Pair("t5"), [(reader, TEXTS[8]), (far, TEXTS[0])])


def _changed(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> None:
    real = getattr(backbone.encoder_decoder, name)
    monkeypatch.setattr(backbone.encoder_decoder, name, lambda *args, **named: change(real, *args, **named))


def _shift(real: Any, *args: Any, **named: Any) -> Any:
    packed = real(*args, **named)
    for group in packed.groups:
        group.keys = (group.keys - 1).clamp(min=0)
    return packed


def _shifted_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    _changed(monkeypatch, "pack", _shift)


def _shifted_cross_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    _changed(monkeypatch, "pack_cross", _shift)


def _anothers_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    _changed(
        monkeypatch,
        "pack_cross",
        lambda real, rows, encoded, members, *rest, **named: real(
            rows, encoded, [*members[1:], members[0]], *rest, **named
        ),
    )


def _anothers_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(real: Any, prefixes: Any) -> Any:
        made = real(prefixes)
        at, other = (i for i, span in enumerate(made.spans) if span.length == 6)
        made.spans[at], made.spans[other] = made.spans[other], made.spans[at]
        return made

    real = backbone.encoder_decoder._gather
    monkeypatch.setattr(
        backbone.encoder_decoder,
        "_gather",
        lambda prefixes: (
            swapped(real, prefixes) if sum(p.length == 6 for p in prefixes) == 2 else real(prefixes)
        ),
    )


def _pooled_from_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backbone.encoder_decoder.PackedEncoderDecoder, "_pool_both", lambda self, rows, packed: packed
    )


def _no_padding_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "mask", lambda self, **_: None)


def _no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone.encoder_decoder._Stack, "bias", lambda *_: None)


def _placed_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = RowBias._part

    def placed(self: RowBias, *args: Any) -> Any:
        self.placed = torch.ones_like(self.placed)
        return real(self, *args)

    monkeypatch.setattr(RowBias, "_part", placed)


def _places_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(real: Any, *args: Any, **named: Any) -> Any:
        packed = real(*args, **named)
        packed.positions = torch.arange(len(packed.positions)) % 90
        return packed

    _changed(monkeypatch, "pack", counted)


BOTH = (
    _shifted_keys, _shifted_cross_keys, _anothers_encoder, _anothers_prefix, _pooled_from_the_encoder,
    _no_padding_mask,
)  # fmt: skip
MISTAKES = [(family, mistake) for family in TESTED for mistake in BOTH] + [
    ("t5", _no_bias), ("t5", _placed_prefixes), ("bart", _places_of_the_line)
]  # fmt: skip


@pytest.mark.parametrize(("family", "mistake"), MISTAKES)
def test_teeth(
    family: str, mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(Pair(family), EVERYTHING)  # also fills the cache of rows alone, before the mistake is made
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        check(Pair(family), EVERYTHING)
