"""One training step on families of their own kind: gradients against stock models that are fed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from tests.backbone.families import CAUSAL, FAMILIES, PADDED, PREFIXED, checkpoint, tiny
from tests.backbone.reference import prefix_in_every_layer, stock
from tests.trainer.conftest import write_jsonl
from trainer import ConfigError, TrainConfig, load_examples
from trainer.interrupt import StopRequest
from trainer.learner import Learner, Share
from trainer.methods import resolve
from trainer.mixture import step
from trainer.run import Run

Settings = Callable[..., TrainConfig]


def _hidden(family: str, ids: Tensor, learned: dict[str, Tensor]) -> Tensor:
    """The stock model's last state of one text of these tokens, under what is learned."""
    model = stock(family)
    if (soft := learned.get("soft_prompt")) is not None:
        embedded = torch.cat([soft, model.get_input_embeddings()(ids)])
        return model(inputs_embeds=embedded[None]).last_hidden_state[0, -1]
    stack = "prefix.decoder" if family in CAUSAL else "prefix.encoder"
    with prefix_in_every_layer(model, learned[f"{stack}.key"], learned[f"{stack}.value"]):
        return model(input_ids=ids[None]).last_hidden_state[0, -1]


def _loss(family: str, share: Share, learned: dict[str, Tensor]) -> Tensor:
    rows = [torch.tensor([token for token in row.token_ids if token >= 0]) for row in share.rows]
    states = torch.stack([_hidden(family, ids, learned) for ids in rows])
    logits = states @ learned["head.0.weight"].T + learned["head.0.bias"]
    return F.cross_entropy(logits, share.targets.argmax(1))


@pytest.mark.parametrize(
    ("family", "method"),
    [(family, "prompt-tuning") for family in FAMILIES] + [(family, "p-tuning-v2") for family in PREFIXED],
)
def test_a_step_has_the_gradients_of_the_stock_model(
    family: str,
    method: str,
    settings: Settings,
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bone = tiny(family)
    # One batch of texts of different lengths, or padding would not be tried.
    texts = ("good", "a bad film", "the film is great", "not this dull book .", "this is fine", "terrible")
    labels = ("positive", "negative", "positive", "negative", "positive", "negative")
    few = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    run = Run(
        settings(
            backbone=str(checkpoint(family)),
            method=method,
            prompt__pooling="last",
            optimiser__word_dropout=0.0,
            optimiser__batch_size=len(few),
            data__train=str(write_jsonl(tmp_path / "few.jsonl", few)),
        ),
        bone, console,
    )  # fmt: skip
    run.prepare(StopRequest())
    learner = next(iter(run.learners()))
    (share,) = learner.shares()
    assert len({len(row) for row in share.rows}) > 2
    learned = {name: tensor.detach().clone().requires_grad_() for name, tensor in learner.parameters.items()}
    value = _loss(family, share, learned)
    expected = torch.autograd.grad(value, list(learned.values()))
    seen: list[object] = []
    monkeypatch.setattr(Learner, "advance", lambda _, loss, gradients: seen.extend([loss, gradients]))
    step(bone, [learner])
    assert seen[0] == pytest.approx(float(value.detach()), rel=1e-5)
    for name, one, other in zip(learned, expected, seen[1], strict=True):  # type: ignore[arg-type]
        assert one.abs().max() > 1e-4, name
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["p-tuning-v2", "prefix-tuning"])
@pytest.mark.parametrize("family", PADDED)
def test_a_method_that_a_family_cannot_have_is_refused_at_once(
    family: str, method: str, settings: Settings
) -> None:
    config = settings(backbone=str(checkpoint(family)), method=method)
    with pytest.raises(ConfigError, match=rf'{family} attends in its own way .* use "prompt-tuning"'):
        resolve(config, load_examples(config), tiny(family))
