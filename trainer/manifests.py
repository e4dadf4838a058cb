"""Owns the manifest of a resolved configuration: what its prompt file says of itself. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from backbone import Backbone
from prompt_store import (
    DecoderInput,
    Head,
    LabelEmbeddingHead,
    LinearHead,
    LinearLayer,
    Manifest,
    MaxLength,
    VerbalizerHead,
    parse_template,
)
from trainer.config import MethodName, TrainConfig
from trainer.data import TaskData
from trainer.errors import ConfigError
from trainer.label_texts import by_label, label_texts
from trainer.templates import with_counts, without_soft_slots


def build_manifest(
    config: TrainConfig, data: TaskData, backbone: Backbone, *, method: MethodName | None = None
) -> Manifest:
    """The manifest of a resolved configuration, without golden examples, calibration or training record.

    `method="head-only"` gives the reference for a prompt: the same task with nothing virtual and a linear
    head. Raises ConfigError when the parts do not fit together.
    """
    method = method or config.method
    template = with_counts(parse_template(config.prompt.template or "{text}"), backbone)
    pooling, alone = config.prompt.pooling, method == "head-only"
    if alone:
        template = without_soft_slots(template)
    try:
        head: Head = _linear(backbone, data.labels) if alone else _head(config, backbone)
        return Manifest(
            task_id=config.task_id,
            labels=data.labels,
            multi_label=data.multi_label,
            method=method,
            backbone=backbone.shape,
            template=str(template),
            pooling=pooling if pooling is not None else "mean",
            position_offset=template.num_leading_soft,
            decoder=None if config.prompt.decoder is None else DecoderInput(reads=config.prompt.decoder),
            max_length=MaxLength(
                tokens=config.prompt.max_tokens, counts=config.prompt.max_length_counts, cut=config.prompt.cut
            ),
            head=head,
        )
    except ValidationError as error:
        raise ConfigError(f"this configuration makes no valid prompt: {first_reason(error)}") from None


def first_reason(error: ValidationError) -> str:
    """What a manifest is refused for, in one line: the field, if it is one's own fault, and the reason."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")


def _linear(backbone: Backbone, labels: Sequence[str]) -> LinearHead:
    return LinearHead(layers=(LinearLayer(in_features=backbone.shape.hidden_size, out_features=len(labels)),))


def _head(config: TrainConfig, backbone: Backbone) -> Head:
    labels = config.labels or ()
    head = config.head
    if head.type == "verbalizer":
        words = by_label(head.words or {}, labels, "head.words")
        return VerbalizerHead(words=tuple(words[label] for label in labels), aggregate=head.aggregate)
    if head.type == "label_embeddings":
        return LabelEmbeddingHead(descriptions=label_texts(config), scale=head.scale)
    return _linear(backbone, labels)
