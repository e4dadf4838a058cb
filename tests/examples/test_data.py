"""Checks of the example data in examples/."""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "examples"

SINGLE = {
    "sentiment": {"positive", "negative"},
    "question-type": {
        "person",
        "place",
        "number",
        "time",
        "description",
        "entity",
    },
    "support-intent": {
        "order_status",
        "refund",
        "cancel_subscription",
        "change_address",
        "payment_failed",
        "login_problem",
        "talk_to_human",
        "delivery_damaged",
        "invoice_request",
        "product_question",
    },
}
URGENCY = {"urgent", "complaint", "question", "praise"}
TOPIC = {
    "sports",
    "politics",
    "business",
    "technology",
    "health",
    "food",
    "travel",
    "music",
}
# The fewest lines of one label: (train, dev).
FEWEST = {
    "sentiment": (290, 50),
    "question-type": (55, 14),
    "support-intent": (40, 10),
    "urgency": (50, 12),
}
# The fewest lines of one file: (train, dev).
SIZES = {
    "sentiment": (590, 100),
    "question-type": (400, 84),
    "support-intent": (400, 100),
    "urgency": (240, 60),
}
TASKS = sorted(FEWEST)
FILES = [f"{task}/{part}.jsonl" for task in TASKS for part in ("train", "dev")]


def read(name):
    raw = (ROOT / name).read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf"), f"{name}: byte order mark"
    assert raw.endswith(b"\n"), f"{name}: no line end at the end"
    assert b"\r" not in raw, f"{name}: carriage return"
    return [json.loads(line) for line in raw.decode("utf-8").split("\n")[:-1]]


def plain(row):
    """The text without case and punctuation."""
    return " ".join(re.sub(r"[\W_]+", " ", row["text"].casefold()).split())


def label_list(row):
    return row["labels"] if "labels" in row else [row["label"]]


@pytest.mark.parametrize("name", FILES)
def test_fields_and_labels(name):
    task = name.split("/")[0]
    wanted = {"text", "labels"} if task == "urgency" else {"text", "label"}
    for number, row in enumerate(read(name), 1):
        assert set(row) == wanted, f"{name}:{number}"
        labels = label_list(row)
        known = URGENCY if task == "urgency" else SINGLE[task]
        assert set(labels) <= known, f"{name}:{number}"
        assert len(labels) == len(set(labels)), f"{name}:{number}"


@pytest.mark.parametrize("name", [*FILES, "stranger.jsonl"])
def test_texts_are_sane(name):
    for number, row in enumerate(read(name), 1):
        text, where = row["text"], f"{name}:{number}"
        assert text == " ".join(text.split()), f"{where}: odd white space"
        assert text.isprintable(), f"{where}: control character"
        assert "\ufffd" not in text, f"{where}: mojibake"
        assert "â€" not in text, f"{where}: mojibake"
        assert 1 <= len(text.split()) <= 40, f"{where}: length"
        assert 4 <= len(text) <= 240, f"{where}: length"


def test_sentiment_lengths():
    for part, fewest in (("train", 2), ("dev", 4)):
        for row in read(f"sentiment/{part}.jsonl"):
            assert fewest <= len(row["text"].split()) <= 35, row["text"]


@pytest.mark.parametrize("name", FILES)
def test_enough_of_every_label(name):
    task, part = name.removesuffix(".jsonl").split("/")
    rows = read(name)
    column = 0 if part == "train" else 1
    assert len(rows) >= SIZES[task][column]
    counts = Counter(label for row in rows for label in label_list(row))
    for label in URGENCY if task == "urgency" else SINGLE[task]:
        assert counts[label] >= FEWEST[task][column], (label, counts[label])


@pytest.mark.parametrize("part", ["train", "dev"])
def test_urgency_has_empty_and_several_labels(part):
    sizes = Counter(len(row["labels"]) for row in read(f"urgency/{part}.jsonl"))
    assert sizes[0] >= 8
    assert sizes[2] >= 8
    assert sizes[3] >= 1


def test_no_duplicates_anywhere():
    seen = {}
    for name in [*FILES, "stranger.jsonl"]:
        for number, row in enumerate(read(name), 1):
            key, where = plain(row), f"{name}:{number}"
            assert key not in seen, f"{where} repeats {seen.get(key)}"
            seen[key] = where


def test_stranger():
    rows = read("stranger.jsonl")
    known = {**SINGLE, "topic": TOPIC}
    assert Counter(row["task"] for row in rows) == {
        "sentiment": 15,
        "question-type": 15,
        "support-intent": 15,
        "topic": 15,
    }
    for row in rows:
        assert set(row) == {"task", "text", "label"}
        assert row["label"] in known[row["task"]]
    for task in ("sentiment", "question-type", "support-intent", "topic"):
        used = {row["label"] for row in rows if row["task"] == task}
        assert used == known[task], task


def test_topic_labels():
    config = tomllib.loads((ROOT / "topic" / "train.toml").read_text(encoding="utf-8"))
    labels = config["head"]["descriptions"]
    assert set(labels) == TOPIC == set(config["labels"])
    assert len(set(labels.values())) == len(TOPIC)
    for description in labels.values():
        assert 5 <= len(description.split()) <= 30
        assert description.endswith(".")


def test_topic_examples():
    rows = read("topic/examples.jsonl")
    assert Counter(row["label"] for row in rows) == dict.fromkeys(TOPIC, 6)
    texts = {row["text"].lower() for row in rows}
    assert len(texts) == len(rows)
    assert not texts & {row["text"].lower() for row in read("stranger.jsonl")}


def test_readme_counts():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for task in TASKS:
        train, dev = (len(read(f"{task}/{part}.jsonl")) for part in ("train", "dev"))
        row = next(line for line in page.splitlines() if line.startswith(f"| `{task}/`"))
        assert [int(cell) for cell in row.split("|")[3:5]] == [train, dev]
