from __future__ import annotations

from collections.abc import Callable

import pytest

from backbone import Backbone
from prompt_store import LabelEmbeddingHead, LinearHead, VerbalizerHead
from tests.backbone.families import tiny
from trainer import ConfigError, TrainConfig, load_examples
from trainer.methods import MIN_STEPS, build_manifest, resolve

Settings = Callable[..., TrainConfig]


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
        settings, bert, prompt__template='{start}{text} {soft:2}{soft:"a good film"}'
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


def test_causal_backbones_read_the_last_token(settings: Settings) -> None:
    _, manifest = _manifest(settings, tiny("llama"))
    assert manifest.pooling == "last"


def test_small_sets_are_gone_through_more_often(settings: Settings, bert: Backbone) -> None:
    config, _ = _manifest(settings, bert, optimiser__epochs=None, optimiser__batch_size=None)
    assert config.optimiser.epochs is not None
    assert config.optimiser.batch_size is not None
    assert config.optimiser.epochs * -(-96 // config.optimiser.batch_size) >= MIN_STEPS


def test_resolving_twice_changes_nothing(settings: Settings, bert: Backbone) -> None:
    config = settings(prompt__num_virtual_tokens=None)
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
        ({"head__words": {"negative": ("bad",), "positive": ("good",)}}, "no valid prompt"),
        ({"task_id": "Not A Task"}, "no valid prompt"),
    ],
)
def test_what_does_not_fit_is_one_line(
    settings: Settings, bert: Backbone, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _manifest(settings, bert, **overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
