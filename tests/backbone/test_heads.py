"""Heads: many different ones in a batch, calibration, multi-label, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backbone import Backbone, DevicePrompt
from prompt_store import IncompatiblePrompt, InvalidPrompt, Manifest, Prompt
from tests.backbone.families import tiny
from tests.backbone.prompts import manifest, tensors

TEXTS = ["a good film", "the order was late", "who", "thanks , it is fine"]


def bound(bone: Backbone, own: Manifest, **kinds: int) -> DevicePrompt:
    return bone.bind(own, tensors(bone, labels=len(own.labels), **kinds))


def test_many_heads_of_many_shapes_in_one_batch() -> None:
    bone = tiny("bert")
    rows, prompts, expected = [], [], []
    for at in range(60):
        labels = (2, 2, 5, 2)[at % 4]
        deep, normed = at % 3 == 0, at % 2 == 0
        width = bone.shape.hidden_size
        weights = {k: torch.randn(*s) for k, s in {"head.0.weight": (7, width), "head.0.bias": (7,)}.items()}
        layers: list[dict[str, object]] = [{"in_features": width, "out_features": 7, "activation": "tanh"}]
        if deep:
            weights |= {"head.1.weight": torch.randn(labels, 7)}
            layers.append({"in_features": 7, "out_features": labels, "bias": False})
            if normed:
                layers[0]["norm_eps"] = 1e-3
                weights |= {"head.0.norm.weight": torch.randn(7), "head.0.norm.bias": torch.randn(7)}
        else:
            weights = {"head.0.weight": torch.randn(labels, width), "head.0.bias": torch.randn(labels)}
            layers = [{"in_features": width, "out_features": labels}]
        own = manifest(bone, labels=labels, head={"type": "linear", "layers": tuple(layers)})
        prompt = bone.bind(own, weights)
        for text in TEXTS[: 1 + at % 3] * (
            10 if at == 5 else 1
        ):  # one task has more rows than a shared product takes
            row = bone.row_encoder(own).encode([text])[0]
            rows.append(row)
            prompts.append(prompt)
            x = bone.features([row], [prompt])[0]
            x = F.linear(x, weights["head.0.weight"], weights["head.0.bias"])
            if deep:
                x = torch.tanh(x)
                if normed:
                    x = F.layer_norm(
                        x, (7,), weights["head.0.norm.weight"], weights["head.0.norm.bias"], 1e-3
                    )
                x = F.linear(x, weights["head.1.weight"])
            expected.append(x)
    for got, want in zip(bone.forward(rows, prompts), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_label_embeddings_are_scaled_cosines() -> None:
    bone = tiny("bert")
    head = {"type": "label_embeddings", "descriptions": ("x", "y", "z"), "scale": 8.0}
    own = manifest(bone, labels=3, head=head)
    vectors = torch.randn(3, bone.shape.hidden_size)
    prompt = bone.bind(own, {"verbalizer.label_embeddings": vectors})
    rows = bone.row_encoder(own).encode(TEXTS)
    got = torch.stack(bone.forward(rows, [prompt] * len(rows)))
    want = 8 * F.cosine_similarity(bone.features(rows, [prompt] * len(rows))[:, None], vectors[None], dim=-1)
    torch.testing.assert_close(got, want)


def test_calibration_and_probabilities() -> None:
    bone = tiny("bert")
    plain = manifest(bone, labels=3)
    moved = manifest(bone, labels=3, calibration={"temperature": 2.0, "bias": (1.0, -1.0, 0.5)})
    rows = bone.row_encoder(plain).encode(TEXTS[:1]) * 2
    one, two = bone.forward(rows, [bound(bone, plain), bound(bone, moved)])
    torch.testing.assert_close(two, (one + torch.tensor([1.0, -1.0, 0.5])) / 2)
    (softmax,) = bone.score(rows[:1], [bound(bone, plain)])
    np.testing.assert_allclose(softmax, one.softmax(-1).numpy(), rtol=1e-5)
    several = manifest(bone, labels=3, multi_label=True)
    (sigmoid,) = bone.score(rows[:1], [bound(bone, several)])
    np.testing.assert_allclose(sigmoid, one.sigmoid().numpy(), rtol=1e-5)


def test_a_row_that_is_not_finite_fails_alone() -> None:
    bone = tiny("bert")
    own = manifest(bone)
    broken = bone.bind(own, {k: torch.full_like(v, float("inf")) for k, v in tensors(bone).items()})
    rows = bone.row_encoder(own).encode(TEXTS[:3])
    good = bound(bone, own)
    first, second, third = bone.score(rows, [good, broken, good])
    assert all(np.isnan(second))
    np.testing.assert_allclose(first, bone.score(rows[:1], [good])[0], rtol=1e-4)
    np.testing.assert_allclose(third, bone.score(rows[2:], [good])[0], rtol=1e-4)


def test_the_pooler_is_the_stock_one() -> None:
    bone = tiny("albert")
    own = manifest(bone, pooling="cls")
    if bone._pooler is None:
        with pytest.raises(IncompatiblePrompt, match="no pooler"):
            bound(bone, manifest(bone, pooling="pooler"))
    assert bound(bone, own).num_labels == 2


def _load(bone: Backbone, own: Manifest, **kinds: int) -> DevicePrompt:
    arrays = {name: t.numpy() for name, t in tensors(bone, labels=len(own.labels), **kinds).items()}
    return bone.load_prompt(Prompt(own, arrays))


def test_load_prompt_checks_and_copies() -> None:
    bone = tiny("llama")
    loaded = _load(bone, manifest(bone, soft=3), soft=3, prefix=4)
    assert (loaded.num_soft_tokens, loaded.num_prefix_tokens, loaded.num_virtual_tokens) == (3, 4, 7)
    assert loaded.nbytes > 0
    other = manifest(bone).model_copy(update={"backbone": tiny("bert").shape})
    with pytest.raises(IncompatiblePrompt):
        _load(bone, other)


def test_values_must_stay_finite_in_the_serving_dtype() -> None:
    bone = tiny("bert", "bfloat16")
    own = manifest(bone, soft=2)
    arrays = {name: t.numpy() for name, t in tensors(bone, soft=2).items()}
    arrays["soft_prompt"][0, 0] = 3.4e38  # finite in float32, infinite in bfloat16
    with pytest.raises(InvalidPrompt):
        bone.load_prompt(Prompt(own, arrays))


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        (
            "bert",
            {
                "template": "{text} {mask}",
                "pooling": "mask",
                "head": {"type": "verbalizer", "words": (("good",), ("unseenword",))},
            },
            "one token",
        ),
        ("bert", {"pooling": "pooler"}, "no pooler"),
    ],
)
def test_prompts_without_a_place_are_refused(family: str, changes: dict[str, object], said: str) -> None:
    bone = tiny(family)
    with pytest.raises(IncompatiblePrompt, match=said):
        bound(bone, manifest(bone, **changes))


def test_a_verbalizer_needs_a_language_model_head() -> None:
    from backbone import load_backbone

    bone = load_backbone("minilm", device="cpu", dtype="float32")
    own = manifest(
        bone, template="{text} {mask}", head={"type": "verbalizer", "words": (("good",), ("bad",))}
    )
    with pytest.raises(IncompatiblePrompt, match="language-model head"):
        bone.bind(own, {})


def test_label_words_must_differ_and_be_read_at_the_mask() -> None:
    bone = tiny("bert")
    head = {"type": "verbalizer", "words": (("good",), ("bad",))}
    with pytest.raises(IncompatiblePrompt, match="'mask'"):
        bone.bind(manifest(bone, template="{text} {mask}", head=head), {})
    same = {"type": "verbalizer", "words": (("good",), ("good",))}
    with pytest.raises(IncompatiblePrompt, match="same token"):
        bone.bind(manifest(bone, template="{text} {mask}", head=same, pooling="mask"), {})
    unknown = {"type": "verbalizer", "words": (("good",), ("☃",))}
    with pytest.raises(IncompatiblePrompt, match="not in the vocabulary"):
        bone.bind(manifest(bone, template="{text} {mask}", head=unknown, pooling="mask"), {})


def test_gradients_reach_soft_prompt_prefix_and_head() -> None:
    for family in ("bert", "modernbert", "llama"):
        bone = tiny(family)
        own = manifest(bone, soft=3)
        parameters = {n: t.requires_grad_() for n, t in tensors(bone, soft=3, prefix=4).items()}
        prompt = bone.bind(own, parameters)
        rows = bone.row_encoder(own).encode([*TEXTS, "the " * 60])
        torch.stack(bone.forward(rows, [prompt] * len(rows))).logsumexp(-1).sum().backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None, (family, name)
            assert torch.isfinite(parameter.grad).all(), (family, name)
            assert parameter.grad.abs().max() > 1e-4, (family, name)


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_learning_takes_the_same_forward(family: str) -> None:
    """With gradients, attention is written out operator by operator: its scores must be the fused kernel's."""
    bone = tiny(family)
    own = manifest(bone, soft=3)
    parameters = {n: t.requires_grad_() for n, t in tensors(bone, soft=3, prefix=4).items()}
    rows = bone.row_encoder(own).encode([*TEXTS, "the " * 60])
    learning = bone.forward(rows, [bone.bind(own, parameters)] * len(rows))
    with torch.no_grad():
        serving = bone.forward(rows, [bone.bind(own, parameters)] * len(rows))
    torch.testing.assert_close(torch.stack(learning), torch.stack(serving), atol=1e-5, rtol=1e-4)
