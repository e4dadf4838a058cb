"""Owns the formats JSONL, CSV and TSV: a file's bytes → records with their places. Knows no example and no label.

Every error is one line that names the file, the line and the remedy.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.errors import DataError

_field_size = threading.Lock()


def records(
    path: Path, kind: str, encoding: str, wanted: Collection[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file's records by column, each with its place; `kind` is jsonl, csv or tsv, `wanted` the columns that are read.

    Raises DataError.
    """
    text = decode(path, encoding)
    yield from _json_records(path, text) if kind == "jsonl" else _csv_records(path, text, kind, wanted)


def decode(path: Path, *encodings: str) -> str:
    """A file's text, without a byte order mark, in the first of these encodings that it can be in. Raises DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    *guesses, encoding = encodings
    for guess in guesses:
        with suppress(UnicodeDecodeError):
            return data.decode(guess).removeprefix("\ufeff")
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise DataError(f"data.encoding: {encoding!r} is no encoding that Python knows") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            likely = "utf-16"
        else:
            likely = "latin-1" if encoding == "cp1252" else "cp1252"
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not {encoding.removesuffix('-sig')}; "
            f"save the file as UTF-8 or name its encoding with data.encoding (for instance {likely})"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path}: cannot be read as {encoding} ({error}); name another data.encoding"
        ) from None


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    # Not str.splitlines: that also splits at U+0085, U+2028 and others, which are ordinary characters.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _json_records(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines(text):
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == 1 and line.lstrip().startswith("["):
                reason = "an array begins here"
            elif isinstance(error, json.JSONDecodeError):
                reason = error.msg
            else:
                reason = (
                    "nested too deeply"
                    if isinstance(error, RecursionError)
                    else "a number of too many digits"
                )
            raise DataError(f"{place}: not JSON ({reason}); expected one object per line") from None
        if not isinstance(record, dict):
            raise DataError(f'{place}: expected a JSON object such as {{"text": …, "label": …}}')
        yield place, record


def _csv_records(
    path: Path, text: str, kind: str, wanted: Collection[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    # TSV files by convention do not quote: a lone " in a sentence must not swallow the lines after it.
    reader = (
        csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        if kind == "tsv"
        else csv.reader(io.StringIO(text, newline=""), strict=True)
    )
    header: list[str] | None = None
    rows: list[tuple[int, list[str]]] = []
    line = 1
    with _field_size:
        # Texts may be long, and are in memory already; the module has one limit for all of its readers.
        limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        try:
            for fields in reader:
                rows.append((line, fields))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: not {kind.upper()} ({error})") from None
        finally:
            csv.field_size_limit(limit)
    for line, fields in rows:
        place = f"{path}, line {line}"
        if not any(field.strip() for field in fields):
            continue
        if header is None:
            header = [field.strip() for field in fields]
            if twice := [name for name in header if name in wanted and header.count(name) > 1]:
                raise DataError(f"{place}: two columns are called {twice[0]!r}: rename or remove one of them")
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{place}: {len(fields)} fields, but the header has {len(header)}; "
                + ("remove the extra tab" if kind == "tsv" else 'put texts that hold a comma in "quotes"')
            )
        yield place, dict(zip(header, fields, strict=True))
