"""What the training benches learn from: a data set's files, or a part of them. Knows no model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from trainer import TrainConfig, load_config

TOKENS, BATCH = 20, 32  # of both sides of the race
Curve = list[tuple[float, float]]  # seconds of training, dev accuracy


@dataclass(frozen=True)
class Plan:
    """What both sides of the race share."""

    data: Path
    train_lines: int | None
    dev_lines: int | None
    epochs: int
    evaluations: int
    seed: int


def part_of(source: Path, target: Path, lines: int | None) -> Path:
    """The first lines of a JSONL file as a file of their own; all of them for None."""
    with source.open(encoding="utf-8") as file:
        target.write_text("".join(itertools.islice(file, lines)), encoding="utf-8")
    return target


def configuration(
    folder: Path, data: Path, *, train_lines: int | None, dev_lines: int | None, **settings: object
) -> TrainConfig:
    """A run on the first lines of `data`'s train.jsonl and dev.jsonl, its files and its output in `folder`.

    Settings are dotted keys with "__" for a dot.
    """
    train = part_of(data / "train.jsonl", folder / "train.jsonl", train_lines)
    dev = part_of(data / "dev.jsonl", folder / "dev.jsonl", dev_lines)
    values: dict[str, object] = {
        "task_id": data.name, "output": str(folder / "run"), "data.train": str(train), "data.dev": str(dev),
        "data.test": str(dev),
    }  # fmt: skip
    return load_config(None, values | {key.replace("__", "."): value for key, value in settings.items()})
