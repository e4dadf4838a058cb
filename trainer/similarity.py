"""Owns how alike two tasks are, judged by their prompts: SPoT's task embeddings (Vu et al. 2022, section 3.2).

Two measures, both cosines, between prompts of one backbone:

    mean      of the two prompts' vectors, each prompt averaged over its virtual tokens
    pairwise  of every virtual token of one with every one of the other, averaged

A virtual token's vector is its row of the soft prompt; of a prefix it is its keys and values of all layers in a row,
each layer's keys and values scaled to length 1 over the whole prompt first, so that no layer speaks louder than others.
Prompts may differ in length, not in kind. Knows numpy only: neither backbone nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prompt_store import Prompt

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """Of two prompts: both measures, in −1 … 1."""

    mean: float
    pairwise: float


class Incomparable(ValueError):
    """Two prompts that no cosine can be taken of; the text says why."""


def token_vectors(prompt: Prompt) -> Vectors:
    """One vector for each virtual token, [n, width]; Incomparable where a prompt has neither soft prompt nor prefix."""
    if prompt.manifest.members:
        raise Incomparable("one is an ensemble: compare one of the prompts that it was joined from")
    if (soft := prompt.tensors.get("soft_prompt")) is not None:
        return soft.astype(np.float64)
    parts = []
    for name in sorted(name for name in prompt.tensors if name.startswith("prefix.")):
        layers = prompt.tensors[name].astype(np.float64)  # [layers, n, kv_heads, head_dim]
        flat = layers.reshape(*layers.shape[:2], -1)
        norms = np.linalg.norm(flat, axis=(1, 2), keepdims=True)
        parts.append((flat / np.maximum(norms, np.finfo(np.float64).tiny)).transpose(1, 0, 2))
    if not parts:
        raise Incomparable("one has neither a soft prompt nor a prefix")
    return np.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)


def similarity(one: Prompt, other: Prompt) -> Similarity:
    """How alike two prompts are. Raises Incomparable: other backbones, other kinds, nothing trained."""
    mine, theirs = one.manifest.backbone, other.manifest.backbone
    if mine.fingerprint != theirs.fingerprint:
        raise Incomparable(f"they were trained for different backbones: {mine.name} and {theirs.name}")
    a, b = token_vectors(one), token_vectors(other)
    if _parts(one) != _parts(other):
        raise Incomparable(f"they have different parts: {_parts(one)} and {_parts(other)}")
    return Similarity(_cosines(a.mean(axis=0, keepdims=True), b.mean(axis=0, keepdims=True)), _cosines(a, b))


def nearest(prompts: Sequence[tuple[str, Prompt]]) -> list[tuple[str, str, Similarity]]:
    """Every pair of these named prompts, the most alike by `mean` first. Raises Incomparable, naming the two."""
    found = []
    for at, (name, prompt) in enumerate(prompts):
        for other_name, other in prompts[at + 1 :]:
            try:
                found.append((name, other_name, similarity(prompt, other)))
            except Incomparable as error:
                raise Incomparable(f"{name} and {other_name} cannot be compared: {error}") from None
    return sorted(found, key=lambda pair: -pair[2].mean)


def _parts(prompt: Prompt) -> str:
    return ", ".join(
        sorted(name for name in prompt.tensors if name == "soft_prompt" or name.startswith("prefix."))
    )


def _cosines(a: Vectors, b: Vectors) -> float:
    """The mean over all pairs of rows; a row of zeros is like nothing."""
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
    return float((a @ b.T / np.maximum(lengths, np.finfo(np.float64).tiny)).mean())
