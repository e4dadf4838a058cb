"""A backbone without torch, prompts that fit it, and a store in memory's stead: what the server's tests share.

The fake scores a text by its first letter, shifted by the prompt's head bias, so that a test sees at once which prompt
gave an answer. Words in a text make it misbehave: see `FakeBackbone.score_on_lane`. A prompt whose bias is BRITTLE
gives no numbers, one whose bias is EXPLOSIVE makes the forward raise, for every text but that of the rehearsal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prompt_store import (
    BackboneRef,
    Golden,
    LinearHead,
    LinearLayer,
    Manifest,
    MaxLength,
    Prompt,
    check_backbone,
    encode_prompt,
    parse_template,
)

REF = BackboneRef(
    name="fake", fingerprint="f" * 64, embedding_width=2, hidden_size=2, layers=1, kv_heads=1, head_dim=2
)


BRITTLE, EXPLOSIVE = 99.0, 98.0
_REHEARSAL = "quick"  # a word of the text that prompts without golden examples are rehearsed with


@dataclass(frozen=True)
class FakeRow:
    words: tuple[str, ...]
    num_prompt_tokens: int
    truncated: bool

    def __len__(self) -> int:
        return self.num_prompt_tokens


class FakeEncoder:
    def __init__(self, manifest: Manifest) -> None:
        self._limit = manifest.max_length.tokens
        template = parse_template(manifest.template)
        self.virtual_tokens = template.num_soft
        self.takes_pair = template.has_pair

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        *,
        max_tokens: int | None = None,
    ) -> list[FakeRow]:
        rows = []
        limit = min(self._limit, max_tokens or self._limit)
        for text, pair in zip(texts, pairs or [None] * len(texts), strict=True):
            words = tuple(f"{text} {pair or ''}".split())
            rows.append(FakeRow(words[:limit], max(1, min(len(words), limit)), len(words) > limit))
        return rows


@dataclass
class FakeDevicePrompt:
    bias: tuple[float, ...]
    nbytes: int
    num_virtual_tokens: int


class FakeBackbone:
    """Deterministic and fast. `delay` is seconds per forward; `meet` is called in each."""

    name = "fake"
    fingerprint = REF.fingerprint
    device = "cpu"
    dtype_name = "float32"
    kernels = ()
    lanes = 2
    shape = REF

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.batches: list[int] = []
        self.meet: Callable[[], object] = lambda: None

    def row_encoder(self, manifest: Manifest) -> FakeEncoder:
        return FakeEncoder(manifest)

    def load_prompt(self, prompt: Prompt) -> FakeDevicePrompt:
        check_backbone(prompt.manifest, REF)
        bias = tuple(float(x) for x in prompt.tensors["head.0.bias"])
        return FakeDevicePrompt(
            bias, sum(t.nbytes for t in prompt.tensors.values()), prompt.num_virtual_tokens
        )

    def score_on_lane(
        self, rows: Sequence[FakeRow], prompts: Sequence[FakeDevicePrompt], *, alone: bool = False
    ) -> list[tuple[float, ...]]:
        if not rows:
            return []
        self.batches.append(len(rows))
        self.meet()
        words = {word for row in rows for word in row.words}
        if "explode" in words or any(map(_explodes, rows, prompts)):
            raise RuntimeError("the device broke, with secrets in its message")
        time.sleep(max([self.delay, *(float(word[6:]) for word in words if word.startswith("sleep="))]))
        for gate in (Path(word[6:]) for word in words if word.startswith("until=")):
            while not gate.exists():
                time.sleep(0.005)
        return [self._score(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]

    def _score(self, row: FakeRow, prompt: FakeDevicePrompt) -> tuple[float, ...]:
        if "not-a-number" in row.words or (BRITTLE in prompt.bias and _REHEARSAL not in row.words):
            return (math.nan,) * len(prompt.bias)
        first = row.words[0][:1] if row.words else ""
        logits = [bias + (0.5 if first == chr(ord("a") + at) else 0.0) for at, bias in enumerate(prompt.bias)]
        weights = [math.exp(logit) for logit in logits]
        return tuple(weight / sum(weights) for weight in weights)


def _explodes(row: FakeRow, prompt: FakeDevicePrompt) -> bool:
    return EXPLOSIVE in prompt.bias and _REHEARSAL not in row.words


def prompt_bytes(
    task_id: str = "sentiment",
    *,
    favours: int = 0,
    labels: Sequence[str] = ("negative", "positive"),
    bias: float = 2.0,
    ref: BackboneRef = REF,
    template: str = "{text}",
    golden: Sequence[Golden] = (),
    **more: Any,
) -> bytes:
    """A prompt file whose answers lean to the label `favours`."""
    manifest = Manifest(
        task_id=task_id,
        labels=tuple(labels),
        method="head-only",
        backbone=ref,
        template=template,
        pooling="mean",
        position_offset=0,
        max_length=more.pop("max_length", MaxLength(tokens=64)),
        head=LinearHead(layers=(LinearLayer(in_features=ref.hidden_size, out_features=len(labels)),)),
        golden=tuple(golden),
        **more,
    )
    leaning = np.zeros(len(labels), np.float32)
    leaning[favours] = bias
    tensors = {"head.0.weight": np.zeros((len(labels), ref.hidden_size), np.float32), "head.0.bias": leaning}
    soft = parse_template(template).num_soft
    if soft:
        tensors["soft_prompt"] = np.zeros((soft, ref.embedding_width), np.float32)
    return encode_prompt(manifest, tensors)


async def idle(_: object) -> None:
    """In place of a loop that a test takes the steps of itself."""
