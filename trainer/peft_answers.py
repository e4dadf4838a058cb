"""Owns what a base model's configuration says about a classifier's answers: which labels, and one or several of them.

What a person should know about an answer goes to `notes`. Knows transformers' names of the keys;
knows no tensors and no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.errors import AdapterError

_SEVERAL, _NUMBERS = "multi_label_classification", "regression"


def labels_of(config: Any, count: int, given: Sequence[str] | None, notes: list[str]) -> tuple[str, ...]:
    """The names of a head's `count` labels: the caller's, the base model's, or none that mean anything."""
    if given is not None:
        if len(given) != count:
            raise AdapterError(f"--labels: the head has {count} labels, and {len(given)} are named")
        return tuple(given)
    named = getattr(config, "id2label", None) or {}
    labels = tuple(str(named.get(at, f"LABEL_{at}")) for at in range(count))
    if len(named) != count or len(set(labels)) != count:
        labels = tuple(f"LABEL_{at}" for at in range(count))
    if all(label == f"LABEL_{at}" for at, label in enumerate(labels)):
        called = f"they are {labels[0]} to {labels[-1]}" if count > 1 else f"the only one is {labels[0]}"
        notes.append(f"nobody named the labels: {called}; name them with --labels, in the order of training")
    else:
        notes.append(f"the labels are the base model's: {', '.join(labels[:10])}")
    return labels


def several_labels(config: Any, count: int, given: bool | None, notes: list[str]) -> bool:
    """Whether a text may have several labels: the caller's word, or the base model's `problem_type`.

    Raises:
        AdapterError: the head was trained to give numbers. One output without a `problem_type` is that in transformers.
            Or it has one output, and is to choose between labels.

    """
    kind = getattr(config, "problem_type", None)
    if given is False and count == 1:
        raise AdapterError(
            "--single-label: the adapter's head has one output, and there is nothing to choose from; if a sigmoid made "
            "a yes or no of it, say --multi-label"
        )
    if given is not None:
        return given
    if count == 1 and kind != _SEVERAL:
        raise AdapterError(
            "the adapter's head has one output: as transformers trains it, it answers with numbers, not labels; if it "
            "was trained for one label all the same, yes or no by a sigmoid, say --multi-label"
        )
    if kind == _NUMBERS:
        raise AdapterError(
            "the base model's problem_type is regression: the adapter answers with numbers, not labels; if it was "
            "trained for labels all the same, say --single-label or --multi-label"
        )
    if kind == _SEVERAL and count > 1:
        notes.append(
            "a text may have several labels, as the base model's problem_type says; --single-label if the adapter was "
            "trained otherwise"
        )
    return kind == _SEVERAL
