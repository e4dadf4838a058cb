"""Owns the data of one task: label order, splits, checks across splits, and their digests.

Knows no file layout (that is `trainer.sources`) and no torch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.config import DataConfig, TrainConfig
from trainer.errors import ConfigError, DataError
from trainer.sources import Columns, Example, read_examples, split_files

MAX_LABELS = 10_000
MAX_LABEL_LENGTH = 200


@dataclass(frozen=True)
class TaskData:
    """The examples of one task, checked: every label of every split is in `labels`, in this order.

    `notes` are observations that a person should read (a set that was split off, texts in two splits).
    """

    labels: tuple[str, ...]
    multi_label: bool
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_pairs(self) -> bool:
        """Whether the training examples are text pairs."""
        return self.train[0].text_pair is not None

    def digests(self) -> dict[str, str]:
        """SHA-256 of each split's contents: independent of file names and layout, dependent on order."""
        return {name: digest(getattr(self, name)) for name in ("train", "dev", "test")}

    def sizes(self) -> dict[str, int]:
        """Number of examples in each split."""
        return {name: len(getattr(self, name)) for name in ("train", "dev", "test")}


def digest(examples: Iterable[Example]) -> str:
    """SHA-256 over one canonical JSON line per example."""
    total = hashlib.sha256()
    for example in examples:
        line = json.dumps([example.text, example.text_pair, list(example.labels)], ensure_ascii=False)
        total.update(line.encode() + b"\n")
    return total.hexdigest()


def columns_of(config: DataConfig, *, multi_label: bool, pairs: bool | None) -> Columns:
    """The column names of `config` for a task of this kind."""
    return Columns(
        text=config.text_column,
        text_pair=config.text_pair_column,
        label=config.label_column,
        labels=config.labels_column,
        label_separator=config.label_separator,
        multi_label=multi_label,
        pairs=pairs,
    )


def load_examples(config: TrainConfig) -> TaskData:
    """Read, check and split the examples of a run. Raises DataError with one line for a person.

    Raises ConfigError for golden examples that are none of this task, before hours of training.
    """
    source = config.data
    template = config.prompt.template
    columns = columns_of(
        source, multi_label=config.multi_label, pairs=(template and "{text_pair}" in template) or None
    )
    paths = split_files(source.train, source.format) or {"train": source.train}
    # What is named besides a folder goes before what lies in it.
    paths |= {name: path for name, path in (("dev", source.dev), ("test", source.test)) if path is not None}
    sets = {
        name: read_examples(path, columns, format=source.format, encoding=source.encoding)
        for name, path in paths.items()
    }
    notes: list[str] = []
    train, dev, test = sets["train"], sets.get("dev", ()), sets.get("test", ())
    _check_pairs((*train, *dev, *test))
    # The label set is settled before anything is split off: a rare label must not look unknown in dev.
    labels = _label_order(config, train)
    if not test and source.test_fraction:
        train, test = stratified_split(train, source.test_fraction, source.split_seed)
        notes.append(f"no test set given: {len(test)} of the training examples were set aside as one")
    if not dev:
        train, dev = stratified_split(train, source.dev_fraction, source.split_seed + 1)
        notes.append(f"no dev set given: {len(dev)} of the training examples were set aside as one")
    if not train or not dev:
        after = "" if sets.get("test") or not source.test_fraction else " left once a test set was set aside"
        free = ", or set data.test_fraction = 0" if after else ""
        raise DataError(
            f"{source.train}: no dev set can be set aside: no label has two different texts{after}; add examples, name "
            f"data.dev{free}"
        )
    for name, examples in (("train", train), ("dev", dev), ("test", test)):
        _check_labels(examples, labels, name)
    if config.method != "hard-prompt":
        _check_every_label_occurs(train, labels)
    notes += _contradictions(train)
    notes += _overlaps(train, dev, test)
    data = TaskData(labels, config.multi_label, train, dev, test, tuple(notes))
    _check_golden(config, data)
    return data


def _check_golden(config: TrainConfig, data: TaskData) -> None:
    for golden in config.golden if config.golden != "train" else ():
        if golden.label not in data.labels:
            raise ConfigError(f"golden: {golden.label!r} is no label of this task")
        if (golden.text_pair is not None) != data.has_pairs:
            raise ConfigError("golden: text_pair is given for tasks on pairs, and for no others")


def _label_order(config: TrainConfig, train: Sequence[Example]) -> tuple[str, ...]:
    found = sorted({label for example in train for label in example.labels})
    labels = config.labels or tuple(found)
    if len(set(labels)) != len(labels):
        raise DataError("labels: the same label twice")
    fewest = 1 if config.multi_label else 2
    if len(labels) < fewest and config.labels is not None:
        raise ConfigError(f"labels: a task needs at least {fewest} different ones, got {len(labels)}")
    if len(labels) < fewest or (config.method != "hard-prompt" and len(found) < fewest):
        only = f"only the label {found[0]!r}" if found else "no label at all"
        raise DataError(f"{config.data.train}: {only} in it; a task needs at least {fewest} different labels")
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"{config.data.train}: {len(labels)} different labels, at most {MAX_LABELS} are allowed"
        )
    for label in labels:
        if len(label) > MAX_LABEL_LENGTH:
            raise DataError(
                f"{config.data.train}: a label of {len(label)} characters, at most {MAX_LABEL_LENGTH}"
            )
    return labels


def _check_labels(examples: Sequence[Example], labels: Sequence[str], split: str) -> None:
    known = set(labels)
    for example in examples:
        for label in example.labels:
            if label not in known:
                shown = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
                raise DataError(
                    f"{example.place}: label {label!r} is unknown in the {split} set (labels: {shown}); "
                    "correct it, or add training examples of it"
                )


def _check_every_label_occurs(train: Sequence[Example], labels: Sequence[str]) -> None:
    occurring = {label for example in train for label in example.labels}
    missing = [label for label in labels if label not in occurring]
    if missing:
        raise DataError(
            f"labels: no training example has {missing[0]!r}"
            + (f" (and {len(missing) - 1} more labels)" if len(missing) > 1 else "")
            + "; add examples of it or remove it"
        )


def _check_pairs(examples: Sequence[Example]) -> None:
    pairs = examples[0].text_pair is not None
    for example in examples:
        if (example.text_pair is not None) != pairs:
            raise DataError(
                f"{example.place}: {'no' if pairs else 'a'} text pair here, unlike in the first example; "
                "either all examples are pairs or none is"
            )


def _contradictions(train: Sequence[Example]) -> list[str]:
    labels: dict[tuple[str, str | None], set[tuple[str, ...]]] = {}
    for example in train:
        labels.setdefault(example.key, set()).add(tuple(sorted(example.labels)))
    torn = [key for key, own in labels.items() if len(own) > 1]
    if not torn:
        return []
    first = torn[0][0] if len(torn[0][0]) <= 60 else torn[0][0][:59] + "…"
    return [
        f"{len(torn)} of {len(labels)} training texts are there with different labels, of which no prompt can learn "
        f"more than one: {first!r}" + (" and others" if len(torn) > 1 else "")
    ]


def _overlaps(train: Sequence[Example], dev: Sequence[Example], test: Sequence[Example]) -> list[str]:
    seen = {example.key for example in train}
    notes = []
    for name, examples in (("dev", dev), ("test", test)):
        shared = sum(example.key in seen for example in examples)
        if shared:
            notes.append(
                f"{shared} of {len(examples)} {name} texts are in the training set too: scores flatter"
            )
    return notes


def stratified_split(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Set about `fraction` of every label aside; returns (rest, set aside), both in file order.

    Equal inputs stay together, so that no text is in both. No label is set aside whole: one that a text has beside
    another, or has in another line, goes unseen by the drawing, so what the rest lacks is put back, one input for each.
    """
    groups: dict[tuple[str, ...], dict[tuple[str, str | None], None]] = {}
    owner: dict[tuple[str, str | None], tuple[str, ...]] = {}
    labels_of: dict[tuple[str, str | None], set[str]] = {}
    for example in examples:
        labels_of.setdefault(example.key, set()).update(example.labels)
        stratum = owner.setdefault(example.key, example.labels[:1])
        groups.setdefault(stratum, {})[example.key] = None
    aside: set[tuple[str, str | None]] = set()
    for stratum in sorted(groups):
        keys = list(groups[stratum])
        # One generator per label: adding examples of one label leaves the split of the others as it was.
        random.Random(f"{seed}/{'/'.join(stratum)}").shuffle(keys)
        count = min(max(1, round(len(keys) * fraction)), len(keys) - 1)
        aside.update(keys[:count])
    kept = {label for example in examples if example.key not in aside for label in example.labels}
    for example in examples:
        if not kept.issuperset(example.labels):
            aside.discard(example.key)
            kept.update(labels_of[example.key])
    rest = tuple(example for example in examples if example.key not in aside)
    return rest, tuple(example for example in examples if example.key in aside)
