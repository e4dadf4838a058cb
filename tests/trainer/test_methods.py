from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf

from backbone import Backbone
from prompt_store import LabelEmbeddingHead, LinearHead, VerbalizerHead
from tests.backbone.families import checkpoint, tiny
from trainer import ConfigError, TrainConfig, load_examples
from trainer.evaluation import logits
from trainer.fixed_prompt import zero_shot
from trainer.manifests import build_manifest
from trainer.methods import DEFAULTS, MIN_STEPS, parameterisation_of, resolve
from trainer.parameterisation import Parameterisation, Plain
from trainer.reparameterised import PrefixProjection, PromptEncoder, Residual

Settings = Callable[..., TrainConfig]
WORDS = {"negative": ("bad", "terrible"), "positive": ("good",)}


def _manifest(settings: Settings, backbone: Backbone, **overrides: object):  # type: ignore[no-untyped-def]
    config = settings(**overrides)
    data = load_examples(config)
    resolved = resolve(config, data, backbone)
    return resolved, build_manifest(resolved, data, backbone)


def test_prompt_tuning_puts_its_soft_prompt_first(settings: Settings, bert: Backbone) -> None:
    config, manifest = _manifest(settings, bert)
    assert manifest.template == "{soft:4}{text}"
    assert (manifest.position_offset, manifest.pooling) == (4, "mean")
    assert isinstance(manifest.head, LinearHead)
    assert config.prompt.init == ("text", "labels", "vocabulary")


def test_soft_slots_may_stand_anywhere_and_start_from_words(settings: Settings, bert: Backbone) -> None:
    config, manifest = _manifest(
        settings,
        bert,
        prompt__template='{start}{text} {soft:2}{soft:"a good film"}',
        prompt__num_virtual_tokens=None,
    )
    assert manifest.template == "{start}{text} {soft:2}{soft:3}"
    assert manifest.position_offset == 0
    assert config.prompt.num_virtual_tokens == 5
    assert config.prompt.template == '{start}{text} {soft:2}{soft:"a good film"}'


def test_p_tuning_v2_has_no_soft_slots(settings: Settings, bert: Backbone) -> None:
    _, manifest = _manifest(settings, bert, method="p-tuning-v2")
    assert (manifest.template, manifest.position_offset) == ("{text}", 0)
    with pytest.raises(ConfigError, match="soft slots are trained by"):
        _manifest(settings, bert, method="p-tuning-v2", prompt__template="{soft:3}{text}")


def test_p_tuning_puts_virtual_tokens_around_the_texts(settings: Settings, bert: Backbone) -> None:
    config, manifest = _manifest(settings, bert, method="p-tuning", prompt__num_virtual_tokens=5)
    assert (manifest.template, manifest.position_offset) == ("{soft:3}{text}{soft:2}", 3)
    assert isinstance(manifest.head, LinearHead)
    assert (config.prompt.reparameterisation, config.prompt.encoder_hidden_size) == (
        "lstm",
        bert.shape.embedding_width // 2,
    )
    _, manifest = _manifest(
        settings, bert, method="p-tuning", prompt__template="so: {text} it was {mask} .", head__words=WORDS
    )
    assert manifest.template == "so: {soft:2}{text}{soft:2} it was {mask} ."
    _, manifest = _manifest(settings, bert, method="p-tuning", prompt__num_virtual_tokens=1)
    assert manifest.template == "{soft:1}{text}"


def test_p_tuning_reads_a_verbalizer_at_a_mask_behind_its_soft_pattern(
    settings: Settings, bert: Backbone
) -> None:
    _, manifest = _manifest(settings, bert, method="p-tuning", head__words=WORDS)
    assert manifest.template == "{soft:2}{text}{soft:2} {mask}"
    assert isinstance(manifest.head, VerbalizerHead)
    assert manifest.pooling == "mask"
    config, manifest = _manifest(
        settings, bert, method="p-tuning", prompt__template='{soft:2}{text} was {soft:"a good"} {mask}',
        head__words=WORDS,
    )  # fmt: skip
    assert manifest.template == "{soft:2}{text} was {soft:2} {mask}"
    assert config.prompt.num_virtual_tokens == 4


def test_p_tuning_v2_may_read_a_verbalizer(settings: Settings, bert: Backbone) -> None:
    _, manifest = _manifest(
        settings, bert, method="p-tuning-v2", prompt__template="{text} it was {mask} .", head__words=WORDS
    )
    assert isinstance(manifest.head, VerbalizerHead)
    assert manifest.pooling == "mask"


@pytest.mark.parametrize(
    ("method", "network", "hidden", "expected"),
    [
        ("prompt-tuning", None, None, Plain()),
        ("prompt-tuning", "residual", 9, Residual(9)),
        ("p-tuning", None, 6, PromptEncoder("lstm", 6)),
        ("p-tuning", "mlp", 6, PromptEncoder("mlp", 6)),
        ("p-tuning", "none", None, Plain()),
        ("prefix-tuning", None, 5, PrefixProjection(5, 4)),
        ("prefix-tuning", "none", None, Plain()),
        ("p-tuning-v2", None, None, Plain()),
        ("p-tuning-v2", "mlp", None, PrefixProjection(512, 4)),
    ],
)
def test_each_method_trains_through_its_networks(
    settings: Settings,
    bert: Backbone,
    method: str,
    network: str | None,
    hidden: int | None,
    expected: Parameterisation,
) -> None:
    assert bert.shape.kv_heads == 4
    config, _ = _manifest(
        settings, bert, method=method, prompt__reparameterisation=network,
        prompt__encoder_hidden_size=hidden, optimiser__prompt_lr=None,
    )  # fmt: skip
    assert parameterisation_of(config, bert) == expected
    assert (
        config.optimiser.prompt_lr
        == DEFAULTS[config.method].networks[config.prompt.reparameterisation or "none"]
    )


def test_hard_prompts_have_label_embeddings_or_a_verbalizer(settings: Settings, bert: Backbone) -> None:
    _, manifest = _manifest(settings, bert, method="hard-prompt")
    assert isinstance(manifest.head, LabelEmbeddingHead)
    assert manifest.head.descriptions == ("negative", "positive")
    words = {"negative": ("bad", "terrible"), "positive": ("good",)}
    _, manifest = _manifest(
        settings, bert, method="hard-prompt", prompt__template="{text} it is {mask} .", head__words=words
    )
    assert isinstance(manifest.head, VerbalizerHead)
    assert manifest.head.words == (("bad", "terrible"), ("good",))
    assert manifest.pooling == "mask"


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_hard_prompt_is_its_formula_on_encoders_and_decoders(settings: Settings, family: str) -> None:
    """Scaled cosines of mean states, as the stock model gives them; a text that is its label's description has 1."""
    backbone, said = tiny(family), ("a good film", "it was bad")
    config = settings(
        backbone=str(checkpoint(family)), method="hard-prompt", head__scale=20.0,
        head__descriptions={"positive": said[0], "negative": said[1]}, labels=("positive", "negative"),
    )  # fmt: skip
    start = zero_shot(config, load_examples(config), backbone)
    rows = backbone.row_encoder(start.manifest).encode([*said, "a bad film"])
    found = logits(backbone, backbone.bind(start.manifest, start.head), rows)
    model = hf.AutoModel.from_pretrained(checkpoint(family)).eval()
    words = slice(1, -1) if family == "bert" else slice(None)  # [CLS] and [SEP] are no part of a text
    with torch.no_grad():
        states = [
            model(torch.tensor([row.token_ids])).last_hidden_state[0, words].mean(dim=0) for row in rows
        ]
    unit = torch.nn.functional.normalize(torch.stack(states), dim=-1)
    assert torch.allclose(found, 20 * unit @ unit[:2].T, atol=1e-3)
    assert torch.allclose(found.diagonal(), torch.tensor(20.0), atol=1e-3)


def test_causal_backbones_read_the_last_token(settings: Settings) -> None:
    _, manifest = _manifest(settings, tiny("llama"))
    assert manifest.pooling == "last"


def test_small_sets_are_gone_through_more_often(settings: Settings, bert: Backbone) -> None:
    config, _ = _manifest(settings, bert, optimiser__epochs=None, optimiser__batch_size=None)
    assert config.optimiser.epochs is not None
    assert config.optimiser.batch_size is not None
    assert config.optimiser.epochs * -(-96 // config.optimiser.batch_size) >= MIN_STEPS


def test_resolving_twice_changes_nothing(settings: Settings, bert: Backbone) -> None:
    for method in DEFAULTS:
        config = settings(method=method, prompt__num_virtual_tokens=None)
        data = load_examples(config)
        once = resolve(config, data, bert)
        assert resolve(once, data, bert) == once


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"prompt__template": "{oops}"}, "prompt.template: template, column 1"),
        (
            {"head__descriptions": {"negative": "bad"}, "method": "hard-prompt"},
            "nothing for the label 'positive'",
        ),
        (
            {
                "head__descriptions": {"negative": "bad", "positive": "good", "x": "y"},
                "method": "hard-prompt",
            },
            "'x' is no label of this task",
        ),
        (
            {"head__words": {"negative": ("bad",), "positive": ("good",)}},
            "label words are read at {mask}, and '{text}' has none: put one in, such as \"{text} It was {mask}\"",
        ),
        ({"prompt__pooling": "mask"}, "no valid prompt: "),
        (
            {"prompt__template": "{soft:3} {text} {soft:2}", "prompt__num_virtual_tokens": 7},
            "prompt.num_virtual_tokens: 7, but the template's slots have 5: leave it out, make it 5, or change",
        ),
        ({"task_id": "Not A Task"}, "task_id: not a task id"),
        (
            {"method": "p-tuning-v2", "prompt__reparameterisation": "lstm"},
            'method = "p-tuning-v2" takes "none" or "mlp", not "lstm"',
        ),
        ({"method": "head-only", "prompt__reparameterisation": "mlp"}, "trains no prompt; leave it out"),
        ({"prompt__encoder_hidden_size": 7}, "nothing is trained through a network"),
        (
            {"method": "p-tuning-v2", "prompt__init": ("text", "random")},
            "prompt.init: a prefix is random as a whole",
        ),
        ({"method": "hard-prompt", "prompt__init_from": "x"}, "trains no prompt; leave it out"),
    ],
)
def test_what_does_not_fit_is_one_line(
    settings: Settings, bert: Backbone, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _manifest(settings, bert, **overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
