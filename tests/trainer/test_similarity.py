"""How alike prompts are: the two cosines against scikit-learn's, and what cannot be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from prompt_store import BackboneRef, LabelEmbeddingHead, Manifest, MaxLength, Member, Prompt
from trainer.similarity import Incomparable, nearest, similarity, token_vectors

SHAPE = BackboneRef(
    name="tiny", fingerprint="ab" * 32, embedding_width=6, hidden_size=8, layers=3, kv_heads=2, head_dim=5
)


def prompt(tensors: dict[str, np.ndarray[Any, Any]], backbone: BackboneRef = SHAPE) -> Prompt:
    soft = tensors.get("soft_prompt")
    manifest = Manifest(
        task_id="t", labels=("a", "b"), method="m", backbone=backbone, pooling="mean", position_offset=0,
        template="{text}" if soft is None else f"{{soft:{soft.shape[0]}}}{{text}}", max_length=MaxLength(tokens=9),
        head=LabelEmbeddingHead(descriptions=("a", "b"), scale=1.0),
    )  # fmt: skip
    return Prompt(manifest, {"verbalizer.label_embeddings": np.ones((2, 8), np.float32)} | tensors)


def soft(count: int, seed: int) -> Prompt:
    values = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float16)
    return prompt({"soft_prompt": values})


def prefix(count: int, seed: int, loud: float = 1.0) -> Prompt:
    random = np.random.default_rng(seed)
    tensors = {
        f"prefix.encoder.{part}": random.normal(size=(3, count, 2, 5)).astype(np.float32)
        for part in ("key", "value")
    }
    tensors["prefix.encoder.key"][1] *= loud
    return prompt(tensors)


def test_soft_prompts_of_different_lengths_are_compared_by_both_cosines() -> None:
    a, b = soft(4, 0), soft(7, 1)
    one, other = (p.tensors["soft_prompt"].astype(np.float64) for p in (a, b))
    found = similarity(a, b)
    assert np.isclose(found.pairwise, cosine_similarity(one, other).mean())
    assert np.isclose(found.mean, cosine_similarity(one.mean(0)[None], other.mean(0)[None])[0, 0])
    assert np.isclose(similarity(b, a).mean, found.mean)
    assert similarity(a, a).mean == pytest.approx(1)
    assert similarity(a, a).pairwise < 1


def test_a_prefixs_token_is_its_keys_and_values_of_every_layer_with_layers_alike() -> None:
    a = prefix(4, 0)
    vectors = token_vectors(a)
    assert vectors.shape == (4, 2 * 3 * 2 * 5)
    key = a.tensors["prefix.encoder.key"].astype(np.float64)
    assert np.allclose(vectors[2, 10:20], key[1, 2].reshape(-1) / np.linalg.norm(key[1]))
    assert np.allclose(vectors, token_vectors(prefix(4, 0, loud=100.0)))
    assert similarity(a, prefix(9, 1)).mean < 0.9


def test_the_most_alike_come_first() -> None:
    base = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    near = base + 0.1 * np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    named = [
        ("far", soft(5, 9)),
        ("base", prompt({"soft_prompt": base})),
        ("near", prompt({"soft_prompt": near})),
    ]
    order = nearest(named)
    assert order[0][:2] == ("base", "near")
    assert len(order) == 3
    assert order[0][2].mean > order[1][2].mean >= order[2][2].mean


def test_what_cannot_be_compared_is_refused_with_the_reason() -> None:
    other = SHAPE.model_copy(update={"name": "other", "fingerprint": "cd" * 32})
    with pytest.raises(Incomparable, match="different backbones: tiny and other"):
        similarity(soft(3, 0), prompt(dict(soft(3, 0).tensors), other))
    with pytest.raises(Incomparable, match="a and b cannot be compared: they have different parts"):
        nearest([("a", soft(3, 0)), ("b", prefix(3, 0))])
    with pytest.raises(Incomparable, match="neither a soft prompt nor a prefix"):
        similarity(prompt({}), prompt({}))


def test_an_ensemble_is_refused_as_one() -> None:
    one = soft(3, 0)
    members = one.manifest.model_copy(update={"members": (Member(), Member())})
    with pytest.raises(Incomparable, match="one is an ensemble: compare one of the prompts"):
        token_vectors(Prompt(members, {}))
    with pytest.raises(Incomparable, match="one is an ensemble"):
        similarity(one, Prompt(members, {}))
    with pytest.raises(Incomparable, match="one has neither"):
        similarity(one, prompt({}))


def test_a_prompt_of_zeros_is_like_nothing() -> None:
    zero = prompt({"soft_prompt": np.zeros((3, 6), np.float32)})
    assert (similarity(zero, zero).mean, similarity(zero, soft(2, 0)).pairwise) == (0, 0)
