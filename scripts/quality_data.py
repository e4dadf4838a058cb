"""Owns the data of the quality table: which sets it has, and copies of them in which nothing held out is trained on.

A dev or test text of any set is in no training set of any task, so that a prompt that starts from another task's, or
many tasks trained together, have seen nothing that they are scored on. Knows no training.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SETS = ("rte", "trec6", "rt-polarity", "subj", "clinc150")
SPLITS = ("train", "dev", "test")
DEV_FRACTION = 0.15
# Names each split's share of the counts; also the folder's mark that every copy in it is whole.
COUNTS = "counts.json"

Row = dict[str, str]


def key(row: Row) -> tuple[str, str]:
    """What makes two examples the same: text and pair in lower case, white space collapsed, none at punctuation."""
    return _plain(row["text"]), _plain(row.get("text_pair", ""))


def _plain(text: str) -> str:
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.lower().split()))


def splits_of(folder: Path) -> dict[str, list[Row]]:
    """A set's train, dev and test rows. Without a test file the given dev rows are the report split, `test`, and a dev
    set is split off train.
    """
    found = {name: _read(file) for name in SPLITS if (file := folder / f"{name}.jsonl").is_file()}
    if "test" not in found:
        train, dev = without_shared_first_texts(found["train"])
        return {"train": train, "dev": dev, "test": found["dev"]}
    return found


def without_shared_first_texts(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Split DEV_FRACTION off; rows with the same first text (a premise with several hypotheses) stay together.

    The choice is a function of the texts alone.
    """
    groups = sorted({key(row)[0] for row in rows})
    random.Random(0).shuffle(groups)
    aside: set[str] = set()
    count = 0
    sizes = dict.fromkeys(groups, 0)
    for row in rows:
        sizes[key(row)[0]] += 1
    for group in groups:
        if count >= DEV_FRACTION * len(rows):
            break
        aside.add(group)
        count += sizes[group]
    return [row for row in rows if key(row)[0] not in aside], [row for row in rows if key(row)[0] in aside]


def cleaned(sets: Mapping[str, Mapping[str, Sequence[Row]]]) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Each set's training rows without those that any set holds out, and what was removed from where.

    The counts are by the set and split that a removed row stands in too; one that stands in several counts at each.
    """
    held = {
        (name, split): {key(row) for row in splits[split]}
        for name, splits in sets.items()
        for split in ("dev", "test")
    }
    everything = set().union(*held.values()) if held else set()
    trains: dict[str, list[Row]] = {}
    counts: dict[str, Any] = {}
    for name, splits in sets.items():
        trains[name] = [row for row in splits["train"] if key(row) not in everything]
        found = {
            f"{other} {split}": sum(key(row) in texts for row in splits["train"])
            for (other, split), texts in held.items()
        }
        counts[name] = {
            "train": len(splits["train"]),
            "kept": len(trains[name]),
            "dev": len(splits["dev"]),
            "test": len(splits["test"]),
            "also in": {place: number for place, number in found.items() if number},
        }
    return trains, counts


def prepare(data: Path, to: Path) -> dict[str, Any]:
    """Write cleaned copies of all sets below `to`, and return the counts; copies that are there are kept.

    Raises SystemExit with one sentence where a set is missing.
    """
    if (to / COUNTS).is_file():
        counts: dict[str, Any] = json.loads((to / COUNTS).read_text(encoding="utf-8"))
        return counts
    missing = [name for name in SETS if not (data / name / "train.jsonl").is_file()]
    if missing:
        raise SystemExit(
            f"quality: no {data / missing[0] / 'train.jsonl'}; give the folder of the data sets with --data"
        )
    sets = {name: splits_of(data / name) for name in SETS}
    trains, counts = cleaned(sets)
    for name, splits in sets.items():
        (to / name).mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        for split in SPLITS:
            rows = trains[name] if split == "train" else splits[split]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            (to / name / f"{split}.jsonl").write_bytes(lines)
            digest.update(lines)
        counts[name]["sha256"] = digest.hexdigest()
    (to / COUNTS).write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return counts


def _read(file: Path) -> list[Row]:
    # Not splitlines: U+0085 and U+2028 are ordinary characters of a text.
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
