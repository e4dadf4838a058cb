"""Owns what distinguishes the methods: defaults, manifest, and which learning rate each tensor has.

    prompt-tuning   soft prompt at the embedding layer + head      Lester et al. 2021, arXiv 2104.08691
    p-tuning-v2     keys and values before every layer + head      Liu et al. 2022, arXiv 2110.07602
    head-only       a linear head on frozen features
    hard-prompt     nothing: label embeddings or a verbalizer, zero-shot

Knows the prompt file's shapes; knows nothing of optimisers or data files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from backbone import Backbone
from prompt_store import (
    Head,
    InvalidTemplate,
    LabelEmbeddingHead,
    LinearHead,
    LinearLayer,
    Manifest,
    MaxLength,
    SoftSlot,
    Template,
    VerbalizerHead,
    parse_template,
)
from trainer.config import Initialisation, MethodName, OptimiserConfig, TrainConfig
from trainer.data import TaskData
from trainer.errors import ConfigError

Group = Literal["prompt", "head"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Defaults:
    """A method's settings where the configuration names none; chosen on dev sets, see docs/results.md."""

    num_virtual_tokens: int
    init: tuple[Initialisation, ...]
    epochs: int
    batch_size: int
    prompt_lr: float
    head_lr: float
    averaging: float
    word_dropout: float


DEFAULTS: Mapping[MethodName, Defaults] = {
    "prompt-tuning": Defaults(40, ("text", "labels", "vocabulary"), 3, 32, 3e-2, 2e-3, 0.99, 0.1),
    "p-tuning-v2": Defaults(40, ("text", "labels", "vocabulary"), 4, 32, 2e-2, 2e-3, 0.99, 0.1),
}
# A small training set is gone through more often than `epochs` says, until this many steps are made.
MIN_STEPS = 300


def trains_prompt(method: MethodName) -> bool:
    """Whether the method learns a soft prompt or a prefix, and so needs the loop."""
    return method in DEFAULTS


def resolve(config: TrainConfig, data: TaskData, backbone: Backbone) -> TrainConfig:
    """Fill every setting that is still None, so that what is recorded is what ran. Raises ConfigError."""
    prompt, head = config.prompt, config.head
    head_type = head.type or _head_type(config)
    if head_type == "verbalizer" and not backbone.has_lm_head:
        raise ConfigError(f"head.words: {backbone.name} has no language-model head; leave head.words out")
    defaults = DEFAULTS.get(config.method)
    count = prompt.num_virtual_tokens or (defaults.num_virtual_tokens if defaults else None)
    template = _template(config, data, count)
    if config.method == "prompt-tuning":
        count = with_counts(template, backbone).num_soft
    update: dict[str, object] = {
        "labels": data.labels,
        "prompt": prompt.model_copy(
            update={
                "template": str(template),
                "num_virtual_tokens": count,
                "init": prompt.init or (defaults.init if defaults else None),
                "pooling": prompt.pooling if prompt.pooling is not None else _pooling(head_type, backbone),
            }
        ),
        "head": head.model_copy(update={"type": head_type}),
    }
    if defaults is not None:
        update["optimiser"] = _optimiser(config.optimiser, defaults, len(data.train))
    return config.model_copy(update=update)


def _head_type(config: TrainConfig) -> Literal["linear", "verbalizer", "label_embeddings"]:
    if config.head.words is not None:
        return "verbalizer"
    return "label_embeddings" if config.method == "hard-prompt" else "linear"


def _pooling(head_type: str, backbone: Backbone) -> Literal["mask", "last", "mean"]:
    if head_type == "verbalizer":
        return "mask"
    return "last" if backbone.is_causal else "mean"


def _optimiser(given: OptimiserConfig, defaults: Defaults, examples: int) -> OptimiserConfig:
    batch_size = given.batch_size or defaults.batch_size
    epochs = given.epochs or max(defaults.epochs, math.ceil(MIN_STEPS / math.ceil(examples / batch_size)))
    averaging = defaults.averaging if given.averaging is None else given.averaging
    return given.model_copy(
        update={
            "batch_size": batch_size,
            "epochs": epochs,
            "prompt_lr": given.prompt_lr or defaults.prompt_lr,
            "head_lr": defaults.head_lr if given.head_lr is None else given.head_lr,
            "averaging": averaging,
            "word_dropout": defaults.word_dropout if given.word_dropout is None else given.word_dropout,
        }
    )


def _template(config: TrainConfig, data: TaskData, count: int | None) -> Template:
    bare = "{text} {text_pair}" if data.has_pairs else "{text}"
    try:
        template = parse_template(config.prompt.template or bare)
        if data.has_pairs and not template.has_pair:
            raise ConfigError("prompt.template: the examples are pairs, but the template has no {text_pair}")
        if config.method == "prompt-tuning" and not template.soft_slots:
            template = parse_template(f"{{soft:{count}}}{template}")
    except InvalidTemplate as error:
        raise ConfigError(f"prompt.template: {error}") from None
    if config.method != "prompt-tuning" and template.soft_slots:
        raise ConfigError(
            f'prompt.template: soft slots are trained by method = "prompt-tuning", not {config.method!r}'
        )
    return template


def with_counts(template: Template, backbone: Backbone) -> Template:
    """The template with every `{soft:"words"}` turned into as many virtual tokens as its words have
    tokens.
    """
    words = [slot.init or "" for slot in template.soft_slots if slot.count is None]
    return template.resolve([max(1, len(backbone.tokenizer.encode_one(text))) for text in words])


def without_soft_slots(template: Template) -> Template:
    """The same template with nothing virtual in it: what the frozen features of head-only are computed on."""
    return Template(tuple(part for part in template.parts if not isinstance(part, SoftSlot)))


def build_manifest(
    config: TrainConfig, data: TaskData, backbone: Backbone, *, method: MethodName | None = None
) -> Manifest:
    """The manifest of a resolved configuration, without golden examples, calibration or training record.

    `method="head-only"` gives the reference for a prompt: the same task with nothing virtual and a linear
    head. Raises ConfigError when the parts do not fit together.
    """
    method = method or config.method
    template = with_counts(parse_template(config.prompt.template or "{text}"), backbone)
    pooling, head = config.prompt.pooling, _head(config, backbone)
    if method == "head-only":
        template, head = without_soft_slots(template), _linear(backbone, data.labels)
    try:
        return Manifest(
            task_id=config.task_id,
            labels=data.labels,
            multi_label=data.multi_label,
            method=method,
            backbone=backbone.shape,
            template=str(template),
            pooling=pooling if pooling is not None else "mean",
            position_offset=template.num_leading_soft,
            max_length=MaxLength(
                tokens=config.prompt.max_tokens, counts=config.prompt.max_length_counts, cut=config.prompt.cut
            ),
            head=head,
        )
    except ValueError as error:  # pydantic's ValidationError is one
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"this configuration makes no valid prompt: {' – '.join(lines[1:3])}") from None


def _linear(backbone: Backbone, labels: Sequence[str]) -> LinearHead:
    return LinearHead(layers=(LinearLayer(in_features=backbone.shape.hidden_size, out_features=len(labels)),))


def _head(config: TrainConfig, backbone: Backbone) -> Head:
    labels = config.labels or ()
    head = config.head
    if head.type == "verbalizer":
        words = _by_label(head.words or {}, labels, "head.words")
        return VerbalizerHead(words=tuple(words[label] for label in labels), aggregate=head.aggregate)
    if head.type == "label_embeddings":
        return LabelEmbeddingHead(descriptions=label_texts(config), scale=head.scale)
    return _linear(backbone, labels)


def label_texts(config: TrainConfig) -> tuple[str, ...]:
    """What each label means in words: its description, or its name with underscores and hyphens opened up."""
    labels = config.labels or ()
    if config.head.descriptions is None:
        return tuple(label.replace("_", " ").replace("-", " ").strip() or label for label in labels)
    descriptions = _by_label(config.head.descriptions, labels, "head.descriptions")
    return tuple(descriptions[label] for label in labels)


def _by_label(given: Mapping[str, Value], labels: Sequence[str], key: str) -> Mapping[str, Value]:
    for label in labels:
        if label not in given:
            raise ConfigError(f"{key}: nothing for the label {label!r}")
    for label in given:
        if label not in labels:
            raise ConfigError(f"{key}: {label!r} is no label of this task")
    return given


def group_of(tensor_name: str) -> Group:
    """Which learning rate a tensor has: the prompt's (soft prompt, prefix) or the head's."""
    return "prompt" if tensor_name == "soft_prompt" or tensor_name.startswith("prefix.") else "head"
