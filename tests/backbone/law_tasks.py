"""The prompts that the law is tested with: every kind, shape and depth of head, and poisoned ones."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch

from backbone import Backbone, DevicePrompt, Row
from prompt_store import Manifest
from tests.backbone.families import WORDS, tiny
from tests.backbone.prompts import manifest, tensors

TEXTS = (
    "",
    *(" ".join(WORDS[(3 * n + i) % len(WORDS)] for i in range(n)) for n in (1, 2, 3, 5, 8, 13, 21, 34)),
)
MAXIMAL = " ".join(WORDS[i % len(WORDS)] for i in range(200))  # cut to the model's last place
KINDS = ((0, 0), (3, 0), (7, 0), (0, 2), (0, 6), (4, 5))  # (soft tokens, prefix tokens)
# What else a prompt may ask of a row: each is one more task beside two of every kind.
SHAPES = (
    "cls", "pooler", "mask", "pair", "soft in the middle of a pair", "verbalizer", "labels", "deep", "ensemble"
)  # fmt: skip
TASKS = 2 * len(KINDS) + len(SHAPES)


@dataclass(frozen=True, eq=False)
class Task:
    """A prompt with what turns texts into its rows."""

    manifest: Manifest
    prompt: DevicePrompt
    _rows: dict[str, Row] = field(default_factory=dict)

    def row(self, bone: Backbone, text: str) -> Row:
        """Made once for a text: it is what becomes of a row that depends on others, or must not."""
        if text not in self._rows:
            # The second text of a pair comes from the first, so that a pick stays (task, text).
            pair = [" ".join(reversed(text.split()[:9]))] if "{text_pair}" in self.manifest.template else None
            self._rows[text] = bone.row_encoder(self.manifest).encode([text], pair)[0]
        return self._rows[text]


def kinds(bone: Backbone) -> tuple[tuple[int, int], ...]:
    """The kinds as a backbone can have them: one that takes no prefixes has soft prompts as long in their place."""
    return KINDS if bone.takes_prefixes else tuple((soft + prefix, 0) for soft, prefix in KINDS)


@functools.cache
def tasks(family: str, dtype: str = "float32", attention: str = "auto") -> list[Task]:
    """Prompts of all kinds, two of each, with different numbers of labels and depths of head."""
    bone = tiny(family, dtype, attention)
    made = []
    for at, (soft, prefix) in enumerate(kinds(bone) * 2):
        labels = 2 + at % 4
        # The second of each kind pools a single place: the row's last, or counted from one of its ends.
        pooling = {} if at < len(KINDS) else {"pooling": ("last", -1, 1)[at % 3]}
        own = manifest(bone, soft=soft, labels=labels, **pooling)
        made.append(
            Task(own, bone.bind(own, tensors(bone, soft=soft, prefix=prefix, labels=labels, seed=at)))
        )
    return made + [_shaped(bone, shape, seed) for seed, shape in enumerate(SHAPES, 100)]


def _shaped(bone: Backbone, shape: str, seed: int) -> Task:
    """A task that pools, pairs or scores in another way; a decoder's nearest where it has no such part."""
    changes: dict[str, Any] = {}
    soft = prefix = 0
    weights: dict[str, torch.Tensor] | None = None
    cloze = "{text} it was {mask}" + ("" if bone.is_causal else " .")
    hidden = bone.shape.hidden_size
    if shape in ("cls", "pooler"):
        prefix = 2
        pooled = "pooler" if bone.has_pooler and shape == "pooler" else "cls"
        changes = {"pooling": 0 if bone.is_causal else pooled}
    elif shape == "mask":
        soft, changes = 3, {"template": "{soft:3}" + cloze, "pooling": "mask"}
    elif shape == "pair":
        prefix, changes = 3, {"template": "{text} {text_pair}"}
    elif shape == "soft in the middle of a pair":
        soft, changes = 4, {"template": "{text}{soft:4}{text_pair}", "position_offset": 0}
    elif shape == "verbalizer":
        prefix = 3
        words = (("bad", "terrible"), ("great",), ("fine",))
        changes = {
            "template": cloze,
            "pooling": "mask",
            "labels": 3,
            "head": {"type": "verbalizer", "words": words},
        }
    elif shape == "labels":
        changes = {"head": {"type": "label_embeddings", "descriptions": ("bad", "good"), "scale": 20.0}}
        weights = {"verbalizer.label_embeddings": torch.from_numpy(bone.encode_labels(("bad", "good")))}
    elif shape == "ensemble":
        soft, prefix = 2, 3 if bone.takes_prefixes else 0
        members = tuple({"calibration": {"temperature": 1.0 + at}} for at in range(3))
        changes = {"template": "{text}{soft:2}", "position_offset": 0, "members": members}
        weights = {
            f"member.{at}.{name}": tensor
            for at in range(len(members))
            for name, tensor in tensors(bone, soft=soft, prefix=prefix, seed=seed + at).items()
        }
    else:
        generator = torch.Generator().manual_seed(seed)
        layers = (
            {"in_features": hidden, "out_features": 10, "activation": "tanh"},
            {"in_features": 10, "out_features": 2},
        )
        calibration = {"temperature": 1.3, "bias": (0.2, -0.1)}
        changes = {
            "multi_label": True,
            "head": {"type": "linear", "layers": layers},
            "calibration": calibration,
        }
        weights = {
            "head.0.weight": torch.randn(10, hidden, generator=generator),
            "head.0.bias": torch.randn(10, generator=generator),
            "head.1.weight": torch.randn(2, 10, generator=generator),
            "head.1.bias": torch.randn(2, generator=generator),
        }
    own = manifest(bone, soft=soft, **changes)
    if weights is None:
        weights = tensors(bone, soft=soft, prefix=prefix if bone.takes_prefixes else 0, seed=seed)
    if own.head.type == "verbalizer":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    return Task(own, bone.bind(own, weights))


@functools.cache
def poisoned(family: str, dtype: str = "float32", attention: str = "auto") -> list[Task]:
    """Prompts whose soft prompt, prefix or head is NaN or infinite."""
    bone = tiny(family, dtype, attention)
    made = []
    for soft, prefix, value in ((3, 0, float("nan")), (0, 4, float("nan")), (2, 2, float("inf"))):
        if not bone.takes_prefixes:
            soft, prefix = soft + prefix, 0
        own = manifest(bone, soft=soft)
        broken = {
            name: torch.full_like(t, value) for name, t in tensors(bone, soft=soft, prefix=prefix).items()
        }
        made.append(Task(own, bone.bind(own, broken)))
    return made
