from __future__ import annotations

import csv
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import Columns, DataError, Example, read_examples
from trainer.sources import split_files


def _write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def _plain(examples: tuple[Example, ...]) -> list[tuple[str, str | None, tuple[str, ...]]]:
    return [(example.text, example.text_pair, example.labels) for example in examples]


def test_jsonl_splits_at_line_feeds_only(tmp_path: Path) -> None:
    text = '{"text": "one\u2028two\u0085three", "label": "x"}\r\n\n{"text": "b", "label": 3}\n'
    source = _write(tmp_path / "a.jsonl", text)
    assert _plain(read_examples(source, Columns())) == [
        ("one\u2028two\u0085three", None, ("x",)),
        ("b", None, ("3",)),
    ]


def test_csv_has_quotes_and_line_breaks_in_them_tsv_has_none(tmp_path: Path) -> None:
    csv = _write(tmp_path / "a.csv", '\ufefflabel,text\nx,"one, ""two""\nthree"\ny,plain\n')
    assert _plain(read_examples(csv, Columns())) == [
        ('one, "two"\nthree', None, ("x",)),
        ("plain", None, ("y",)),
    ]
    tsv = _write(tmp_path / "a.tsv", 'text\tlabel\nhe said "no\tx\nfine\ty\n')
    assert _plain(read_examples(tsv, Columns())) == [('he said "no', None, ("x",)), ("fine", None, ("y",))]


@pytest.mark.parametrize(("suffix", "between"), [("csv", ","), ("tsv", "\t")])
def test_texts_of_any_length_are_read(suffix: str, between: str, tmp_path: Path) -> None:
    """Python's csv module stops at 131,072 characters of a field."""
    limit, path = csv.field_size_limit(), tmp_path / f"long.{suffix}"
    path.write_text(f"text{between}label\n{'word ' * 40_000}.{between}x\n")
    (example,) = read_examples(str(path), Columns())
    assert len(example.text) == 200_001
    assert csv.field_size_limit() == limit  # other code's readers keep theirs


def test_a_byte_order_mark_and_columns_without_a_name_are_no_trouble(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label,,,note,note\na,x,1,2,3,4\n")
    for encoding in (None, "utf-8", "utf-8-sig"):
        assert _plain(read_examples(source, Columns(), encoding=encoding)) == [("a", None, ("x",))]


def test_a_polarity_folder_that_is_no_utf8_is_cp1252_and_splits_at_line_feeds_only(tmp_path: Path) -> None:
    # 0x85 is an ellipsis in cp1252 and a line end for str.splitlines.
    _write(tmp_path / "rt-polarity.pos", b"caf\xe9\x85 splendid .\nfine \n")
    _write(tmp_path / "rt-polarity.neg", b"dull .\n")
    examples = read_examples(str(tmp_path), Columns())
    assert _plain(examples) == [
        ("dull .", None, ("negative",)),
        ("café… splendid .", None, ("positive",)),
        ("fine", None, ("positive",)),
    ]
    assert examples[1].place.endswith("rt-polarity.pos, line 1")


def test_a_polarity_folder_in_utf8_is_read_as_such(tmp_path: Path) -> None:
    _write(tmp_path / "a.pos", "café ” fine\n".encode())  # its last byte but one is nothing in cp1252
    _write(tmp_path / "a.neg", "\ufeffdull\n".encode())
    assert [example.text for example in read_examples(str(tmp_path), Columns())] == ["dull", "café ” fine"]
    _write(tmp_path / "a.neg", b"dull \x9d\n")  # in neither: what is not advised is what was just tried
    with pytest.raises(DataError, match=r"a\.neg, line 1: byte 0x9d is not cp1252; .*instance latin-1"):
        read_examples(str(tmp_path), Columns())


def test_a_folder_of_splits_is_found(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.csv"):
        _write(tmp_path / name, "")
    assert split_files(str(tmp_path), "auto") == {
        "train": str(tmp_path / "train.jsonl"),
        "test": str(tmp_path / "test.csv"),
    }
    assert split_files("hf:imdb", "auto") is None


def test_columns_have_the_names_that_are_given(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.csv", "s1,s2,gold\na,b,x\n")
    columns = Columns(text="s1", text_pair="s2", label="gold")
    assert _plain(read_examples(source, columns)) == [("a", "b", ("x",))]


def test_multi_label_lists_and_separated_texts(tmp_path: Path) -> None:
    columns = Columns(multi_label=True)
    jsonl = _write(
        tmp_path / "a.jsonl", '{"text": "a", "labels": ["x", "y", "x"]}\n{"text": "b", "labels": []}\n'
    )
    assert _plain(read_examples(jsonl, columns)) == [("a", None, ("x", "y")), ("b", None, ())]
    csv = _write(tmp_path / "a.csv", "text,labels\na,x | y\nb,\n")
    assert _plain(read_examples(csv, columns)) == [("a", None, ("x", "y")), ("b", None, ())]


GOOD = '{"text": "a", "label": "x"}\n'


@pytest.mark.parametrize(
    ("name", "data", "place", "message"),
    [
        ("a.jsonl", GOOD + '{"sentence": "b"}\n', "line 2", "no column 'text' (columns here: sentence)"),
        ("a.jsonl", '{"text": "b"}\n', "line 1", "no column 'label'"),
        ("a.csv", "text,target\na,x\n", "line 2", "no column 'label' (columns here: target, text)"),
        ("a.jsonl", '{"text": "b", "labels": ["x"]}\n', "line 1", "but 'labels': set multi_label = true (--set "),
        ("a.csv", "text,labels\na,x\n", "line 2", 'data.label_column = "labels"'),
        ("a.jsonl", '{"text": "b", "label": ["x"]}\n', "line 1", "(lists: multi_label = true)"),
        ("a.jsonl", GOOD + '{"text": "  ", "label": "x"}\n', "line 2", "'text' is empty"),
        ("a.jsonl", '{"text": 3, "label": "x"}\n', "line 1", "'text' must be a text, not int"),
        ("a.jsonl", '{"text": "\\ud800", "label": "x"}\n', "line 1", "half a surrogate pair"),
        ("a.jsonl", '{"text": "a", "label": "\\ud800"}\n', "line 1", "a label holds half a surrogate pair"),
        ("a.jsonl", '{"text": "a", "label": ""}\n', "line 1", "a label must be"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', "line 1", "a label must be"),
        ("a.jsonl", GOOD + "{oops\n", "line 2", "not JSON"),
        ("a.jsonl", "[1]\n", "line 1", "expected a JSON object"),
        ("a.jsonl", "[\n" + GOOD + "]", "line 1", "not JSON (an array begins here); expected one object per line"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1", "not JSON"),
        ("a.jsonl", '{"text": "a", "id": ' + "9" * 5000 + "}\n", "line 1", "not JSON (a number of too many digits)"),
        ("a.jsonl", GOOD.encode() + b'{"text": "caf\xe9", "label": "x"}\n', "line 2", "byte 0xe9 is not utf-8"),
        ("a.csv", b"text,label\ncaf\xe9,x\n", "line 2", "byte 0xe9 is not utf-8"),
        ("a.csv", 'text,label\n"open,x\n', "line 2", "not CSV"),
        ("a.csv", "text,label\na,b,x\n", "line 2", "3 fields, but the header has 2"),
        ("a.tsv", "text\ttext\tlabel\na\tb\tx\n", "line 1", "two columns are called 'text'"),
        ("a.csv", "text,label, label \na,x,y\n", "line 1", "two columns are called 'label': rename or"),
        ("a.jsonl", GOOD.encode("utf-16"), "line 1", "data.encoding (for instance utf-16)"),
        ("a.tsv", "text\tlabel\na\n", "line 2", "1 fields, but the header has 2"),
        ("a.jsonl", "", "", "no examples in it"),
        ("a.csv", "text,label\n", "", "no examples in it"),
        ("a.txt", "x", "", "cannot tell its format"),
    ],
)  # fmt: skip
def test_each_data_error_is_one_line_with_its_place(
    tmp_path: Path, name: str, data: bytes | str, place: str, message: str
) -> None:
    source = _write(tmp_path / name, data)
    with pytest.raises(DataError) as caught:
        read_examples(source, Columns())
    text = str(caught.value)
    assert source in text
    assert place in text
    assert message in text
    assert "\n" not in text
    assert caught.value.exit_code == 2


def test_missing_files_bad_encodings_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_examples(str(tmp_path / "none.csv"), Columns())
    source = _write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match=r"data\.encoding: 'klingon'"):
        read_examples(source, Columns(), encoding="klingon")
    with pytest.raises(DataError, match=r"cannot be read as undefined .*; name another data\.encoding"):
        read_examples(source, Columns(), encoding="undefined")
    with pytest.raises(DataError, match=r"null character.*; name another data\.encoding"):
        read_examples(source, Columns(), encoding="a\0b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"a folder needs train\.jsonl"):
        split_files(str(tmp_path / "empty"), "auto")
    with pytest.raises(DataError, match=r"exactly one \*\.neg file, found 0"):
        read_examples(str(tmp_path / "empty"), Columns())


class _Feature:
    def int2str(self, value: int) -> str:
        if value < 0:
            raise ValueError(f"Invalid integer class label {value}")
        return ("no", "yes")[value]


class _List:
    feature = _Feature()


class _Table:
    features = types.MappingProxyType(
        {"text": object(), "label": _Feature(), "labels": _List(), "other": _Feature()}
    )

    def __init__(self, *rows: dict[str, Any]) -> None:
        self._rows = rows or ({"text": "a", "label": 1}, {"text": "b", "label": 0})

    def __iter__(self) -> Any:
        return iter(self._rows)


def _fake_hub(monkeypatch: pytest.MonkeyPatch, load: Callable[..., object]) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_data_sets_have_their_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None, split: str) -> object:
        asked.append((name, config, split))
        if (name, config) == ("glue/sst2", None):
            raise FileNotFoundError("no such repository")
        return _Table()

    _fake_hub(monkeypatch, load)
    assert _plain(read_examples("hf:glue/sst2:validation", Columns())) == [
        ("a", None, ("yes",)),
        ("b", None, ("no",)),
    ]
    assert asked == [("glue/sst2", None, "validation"), ("glue", "sst2", "validation")]
    read_examples("hf:owner/name/config", Columns())
    assert asked[-1] == ("owner/name", "config", "train")


def test_hub_data_sets_of_several_labels_have_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"text": "a", "labels": [1, 0], "other": -1}, {"text": "b", "labels": [], "other": 0}
    _fake_hub(monkeypatch, lambda *_, **__: _Table(*rows))
    found = read_examples("hf:emotions", Columns(multi_label=True))
    assert [example.labels for example in found] == [("yes", "no"), ()]


def test_a_split_that_hides_its_labels_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_hub(monkeypatch, lambda *_, **__: _Table({"text": "a", "label": -1}))
    with pytest.raises(
        DataError, match=r"hf:glue/sst2:test, row 1: it has no label, as this split hides them"
    ):
        read_examples("hf:glue/sst2:test", Columns())


def test_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> object:
        raise ConnectionError("Couldn't reach the Hub\nwith a long trace")

    _fake_hub(monkeypatch, load)
    with pytest.raises(DataError) as caught:
        read_examples("hf:owner/name", Columns())
    assert "ConnectionError: Couldn't reach the Hub); check its name and the network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_datasets_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install"):
        read_examples("hf:imdb", Columns())
