"""Owns the reading of examples: files and folders in any supported layout, or a data set → examples and their places.

Knows nothing of label sets, splits or prompts. Every error is one line that names the file, the line and the remedy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.tables import decode, lines, records

TABLE_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
POLARITY = (("negative", ".neg"), ("positive", ".pos"))
# What such files are in where nobody says it: today's in UTF-8, rt-polarity's own, which is no UTF-8, in cp1252.
POLARITY_ENCODINGS = ("utf-8-sig", "cp1252")


@dataclass(frozen=True)
class Columns:
    """How the fields of an example are called in its file. `labels` is the multi-label column."""

    text: str = "text"
    text_pair: str = "text_pair"
    label: str = "label"
    labels: str = "labels"
    label_separator: str = "|"
    multi_label: bool = False
    pairs: bool | None = None  # True: the pair column is required; False: it is not read; None: read if there


@dataclass(frozen=True)
class Example:
    """One text (or pair) with its labels: exactly one, unless the task is multi-label. `place` is for messages."""

    text: str
    text_pair: str | None
    labels: tuple[str, ...]
    place: str = ""

    @property
    def key(self) -> tuple[str, str | None]:
        """What makes two examples the same input."""
        return self.text, self.text_pair


def read_examples(
    source: str, columns: Columns, *, format: str = "auto", encoding: str | None = None
) -> tuple[Example, ...]:
    """Read one source (file, `*.pos`/`*.neg` folder, or `hf:…`). Raises DataError; never returns an empty tuple."""
    if source.startswith("hf:"):
        examples = tuple(_from_hub(source, columns))
    else:
        path = Path(source)
        kind = _format_of(path, format)
        if kind == "pos-neg":
            examples = tuple(_from_polarity(path, encoding))
        else:
            examples = tuple(_from_table(path, kind, encoding or "utf-8-sig", columns))
    if not examples:
        raise DataError(f"{source}: no examples in it; expected one per line")
    return examples


def split_files(source: str, format: str) -> dict[str, str] | None:
    """The train/dev/test files of a folder that has them; None when `source` is one set of examples."""
    path = Path(source)
    if source.startswith("hf:") or not path.is_dir() or format not in ("auto", "splits"):
        return None
    if format == "auto" and all(_polarity_files(path).values()):
        return None
    found: dict[str, str] = {}
    for name in ("train", "dev", "test"):
        for suffix in TABLE_SUFFIXES:
            if (file := path / (name + suffix)).is_file():
                found.setdefault(name, str(file))
    if "train" not in found:
        raise DataError(
            f"{source}: a folder needs train.jsonl (or .csv, .tsv), or one *.pos and one *.neg file"
        )
    return found


def _format_of(path: Path, format: str) -> str:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return "pos-neg"
    if format in ("jsonl", "csv", "tsv"):
        return format
    kind = TABLE_SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{path}: cannot tell its format from its name; expected .jsonl (one JSON object per line), .csv or "
            ".tsv, or set data.format to one of these"
        )
    return kind


def _from_table(path: Path, kind: str, encoding: str, columns: Columns) -> Iterator[Example]:
    labels = columns.labels if columns.multi_label else columns.label
    for place, record in records(path, kind, encoding, {columns.text, columns.text_pair, labels}):
        yield _example(record, place, columns)


def _example(record: Mapping[str, Any], place: str, columns: Columns) -> Example:
    text = _text(record, columns.text, "data.text_column", place)
    pair = None
    if columns.pairs or (columns.pairs is None and record.get(columns.text_pair) not in (None, "")):
        pair = _text(record, columns.text_pair, "data.text_pair_column", place)
    if not columns.multi_label:
        if columns.label not in record and columns.labels in record:
            raise DataError(
                f"{place}: no column {columns.label!r} but {columns.labels!r}: set multi_label = true (--set "
                f'multi_label=true) or, if no text has several labels, data.label_column = "{columns.labels}"'
            )
        value = _field(record, columns.label, "data.label_column", place)
        return Example(text, pair, (_label(value, place),), place)
    value = _field(record, columns.labels, "data.labels_column", place)
    if isinstance(value, str):
        value = [part for part in (piece.strip() for piece in value.split(columns.label_separator)) if part]
    if not isinstance(value, list):
        raise DataError(f"{place}: {columns.labels!r} must be a list of labels (a multi-label task)")
    return Example(text, pair, tuple(dict.fromkeys(_label(item, place) for item in value)), place)


def _field(record: Mapping[str, Any], name: str, setting: str, place: str) -> Any:
    if name not in record:
        there = ", ".join(sorted(str(key) for key in record)) or "none"
        raise DataError(f"{place}: no column {name!r} (columns here: {there}); rename it or set {setting}")
    return record[name]


def _text(record: Mapping[str, Any], name: str, setting: str, place: str) -> str:
    value = _field(record, name, setting, place)
    if not isinstance(value, str):
        raise DataError(f"{place}: {name!r} must be a text, not {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{place}: {name!r} is empty; fill it in or delete the line")
    return _whole(value, repr(name), place)


def _whole(value: str, what: str, place: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{place}: {what} holds half a surrogate pair, which is no text; delete the line")
    return value


def _label(value: object, place: str) -> str:
    if isinstance(value, bool | int):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: a label must be non-empty text or an integer (lists: multi_label = true)")
    return _whole(value.strip(), "a label", place)


def _polarity_files(folder: Path) -> dict[str, list[Path]]:
    return {suffix: sorted(folder.glob(f"*{suffix}")) for _, suffix in POLARITY}


def _from_polarity(folder: Path, encoding: str | None) -> Iterator[Example]:
    files, encodings = _polarity_files(folder), (encoding,) if encoding else POLARITY_ENCODINGS
    for label, suffix in POLARITY:
        if len(files[suffix]) != 1:
            raise DataError(
                f"{folder}: expected exactly one *{suffix} file, found {len(files[suffix])}; "
                "name a file of examples, or a folder in the rt-polarity.pos/rt-polarity.neg layout"
            )
        for number, line in lines(decode(files[suffix][0], *encodings)):
            yield Example(line.strip(" "), None, (label,), f"{files[suffix][0]}, line {number}")


def _from_hub(source: str, columns: Columns) -> Iterator[Example]:
    body, _, split = source.removeprefix("hf:").partition(":")
    split = split or "train"
    try:
        import datasets  # slow to import, and an extra: only for those who name a hub data set
    except ImportError:
        raise DataError(f"{source}: needs the 'datasets' package: pip install 'promptmux[trainer]'") from None
    table: Any = None
    reason = ""
    with _quiet_hub():
        for name, config in _hub_names(body):
            try:
                table = datasets.load_dataset(name, config, split=split)
                break
            except ConnectionError as error:  # the other reading of the name would wait for the same network
                reason = _first_line_of(error)
                break
            except Exception as error:  # the library raises a dozen unrelated types for "not there"
                reason = reason or _first_line_of(error)
    if table is None:
        raise DataError(
            f"{source}: could not be loaded ({reason[:160]}); "
            "check its name and the network, or name a local file"
        )
    rows: Iterable[Mapping[str, Any]] = table
    for number, row in enumerate(rows, start=1):
        place = f"{source}, row {number}"
        record = {
            key: _named(table.features[key], value, place)
            if key in (columns.label, columns.labels)
            else value
            for key, value in row.items()
        }
        yield _example(record, place, columns)


def _named(feature: Any, value: Any, place: str) -> Any:
    """A label, or a list of labels, by its name where the data set has names for its numbers."""
    if isinstance(value, list):
        inner = getattr(feature, "feature", None)
        return [_named(inner, one, place) for one in value]
    if value is None or not hasattr(feature, "int2str"):
        return value
    if value == -1:
        raise DataError(f"{place}: it has no label, as this split hides them; name a split that has labels")
    return feature.int2str(value)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub library's retries off the terminal: what matters of them is in the one line that follows."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _first_line_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _hub_names(body: str) -> list[tuple[str, str | None]]:
    # "a/b" is either owner/name or name/config; the hub's own form comes first. "a/b/c" is owner/name/config.
    parts = body.split("/")
    if len(parts) == 1:
        return [(body, None)]
    if len(parts) == 2:
        return [(body, None), (parts[0], parts[1])]
    return [("/".join(parts[:2]), "/".join(parts[2:]))]
