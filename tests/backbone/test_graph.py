"""The recorded model: bit for bit the stock one, in every tested family, and refused where it would not be."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbone import Backbone, UnsupportedBackbone
from backbone.family import refuse_unfit
from backbone.graph import NotRecordable, RecordedModel
from backbone.selfcheck import samples
from tests.backbone.families import PREFIXED, tiny
from tests.backbone.law_tasks import MAXIMAL, TEXTS, tasks


def features(bone: Backbone, family: str, dtype: str, attention: str, texts: list[str]) -> Tensor:
    made = tasks(family, dtype, attention)
    picked = [made[at % len(made)] for at in range(len(texts))]
    rows = [task.row(bone, text) for task, text in zip(picked, texts, strict=True)]
    return bone.features(rows, [task.prompt for task in picked])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", PREFIXED)
def test_the_recorded_model_gives_what_the_model_gives(family: str, dtype: str) -> None:
    bone = tiny(family, dtype)
    assert "graph" in bone.kernels
    recorded = bone._encoder.recorded
    for texts in (["a"], list(TEXTS), [MAXIMAL, *TEXTS], [MAXIMAL]):
        with torch.no_grad():
            got = features(bone, family, dtype, "auto", texts)
            bone._encoder.recorded = None
            try:
                expected = features(bone, family, dtype, "auto", texts)
            finally:
                bone._encoder.recorded = recorded
        assert torch.equal(got, expected)


def test_gradients_come_from_the_model_itself() -> None:
    bone = tiny("bert")
    task = next(task for task in tasks("bert") if task.prompt.prefix_keys)
    size = (bone.shape.layers, task.prompt.num_prefix_tokens, bone.shape.kv_heads, bone.shape.head_dim)
    learned = {f"prefix.encoder.{kind}": torch.randn(size, requires_grad=True) for kind in ("key", "value")}
    labels = len(task.manifest.labels)
    head = {"head.0.weight": torch.randn(labels, bone.shape.hidden_size), "head.0.bias": torch.zeros(labels)}
    (logits,) = bone.forward([task.row(bone, "one two")], [bone.bind(task.manifest, learned | head)])
    gradients = torch.autograd.grad(logits[0], list(learned.values()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_batch_are_refused(kind: str) -> None:
    config = SimpleNamespace(model_type="phi3", rope_parameters={"rope_type": kind})
    with pytest.raises(UnsupportedBackbone, match=kind):
        refuse_unfit(SimpleNamespace(config=config, base_model=nn.Identity()))
    nested = SimpleNamespace(model_type="x", rope_parameters={"full_attention": {"rope_type": kind}})
    with pytest.raises(UnsupportedBackbone, match=kind):
        refuse_unfit(SimpleNamespace(config=nested, base_model=nn.Identity()))


def test_threads_do_not_mix_up_their_batches() -> None:
    bone = tiny("bert")
    made = tasks("bert")
    rows = [task.row(bone, TEXTS[4]) for task in made]
    prompts = [task.prompt for task in made]
    expected = [bone.score_on_lane([row], [prompt]) for row, prompt in zip(rows, prompts, strict=True)]
    found: dict[int, list[Any]] = {}

    def lane(number: int) -> None:
        order = list(range(len(rows)))[:: 1 if number % 2 else -1] * 5
        found[number] = [(at, bone.score_on_lane([rows[at]], [prompts[at]])) for at in order]

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(4)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join(60)
    assert len(found) == 4
    assert all(scores == expected[at] for own in found.values() for at, scores in own)


class _Deciding(nn.Module):
    """Decides by a value, as some rotary embeddings do for long texts."""

    def forward(self, position_ids: Tensor, packed_batch: Any) -> tuple[Tensor]:
        packed_batch.calls += 1
        return (position_ids * (2.0 if int(position_ids.max()) > 5 else 1.0),)


class _Batch:
    calls = 0


def test_a_model_that_decides_by_values_is_not_recorded() -> None:
    short, long = ({"position_ids": torch.arange(n)[None]} for n in (3, 9))
    with pytest.raises(NotRecordable, match="something else"):
        RecordedModel(_Deciding(), {}, [(short, _Batch()), (long, _Batch())])  # type: ignore[list-item]


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_that_looks_at_the_lines_length_is_not_recorded(dtype: str, thorough: bool) -> None:
    """The samples' lines differ also where they are filled up to few lengths."""
    bone = tiny("bert", dtype, "eager")
    lengths: list[int] = []

    def looking(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        lengths.append(int(given[0].shape[1]))
        return result * 2 if lengths[-1] != lengths[0] else result

    hook = bone._base.encoder.layer[0].register_forward_hook(looking)
    try:
        with pytest.raises(NotRecordable, match="something else at other lengths"):
            bone.record(samples(bone, thorough=thorough))
    finally:
        hook.remove()
    assert len(set(lengths)) > 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no tracer here\nwith details"), r"RuntimeError: no tracer here$"),
        (AssertionError(), "Assertion"),
    ],
)
def test_a_model_that_cannot_be_recorded_still_serves(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    bone = tiny("bert", attention="eager")
    monkeypatch.setattr("torch.jit.trace", broken)
    with pytest.raises(NotRecordable, match=said):
        bone.record(samples(bone, thorough=True))
    assert "graph" not in bone.kernels
    with torch.no_grad():
        assert torch.isfinite(features(bone, "bert", "float32", "eager", ["a"])).all()
