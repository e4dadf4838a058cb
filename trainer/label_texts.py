"""What a task's labels mean in words, as the configuration says it. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from trainer.config import TrainConfig
from trainer.errors import ConfigError

Value = TypeVar("Value")


def label_texts(config: TrainConfig) -> tuple[str, ...]:
    """What each label means in words: its description, or its name with underscores and hyphens opened up."""
    labels = config.labels or ()
    if config.head.descriptions is None:
        return tuple(label.replace("_", " ").replace("-", " ").strip() or label for label in labels)
    descriptions = by_label(config.head.descriptions, labels, "head.descriptions")
    return tuple(descriptions[label] for label in labels)


def starting_texts(config: TrainConfig) -> tuple[str, ...]:
    """What `labels` in `prompt.init` starts from, of a resolved configuration: the words that stand for each label
    where the language model answers with them (Lester et al. 2021, section 3.2), else what the label means.
    """
    if config.head.type != "verbalizer" or config.head.words is None:
        return label_texts(config)
    words = by_label(config.head.words, config.labels or (), "head.words")
    return tuple(" ".join(words[label]) for label in config.labels or ())


def by_label(given: Mapping[str, Value], labels: Sequence[str], key: str) -> Mapping[str, Value]:
    """`given` by label, which must name each label and no other. Raises ConfigError with the setting's `key`."""
    for label in labels:
        if label not in given:
            raise ConfigError(f"{key}: nothing for the label {label!r}")
    for label in given:
        if label not in labels:
            raise ConfigError(f"{key}: {label!r} is no label of this task")
    return given
