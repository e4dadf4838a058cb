from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.conftest import separable, write_jsonl
from trainer import ConfigError, DataError, Example, TrainConfig, load_examples
from trainer.data import digest, stratified_split

Settings = Callable[..., TrainConfig]


def test_labels_are_sorted_or_in_the_given_order(settings: Settings) -> None:
    assert load_examples(settings()).labels == ("negative", "positive")
    assert load_examples(settings(labels=("positive", "negative"))).labels == ("positive", "negative")


def test_missing_sets_are_split_off_the_training_set(settings: Settings) -> None:
    data = load_examples(settings(data__dev=None, data__test=None))
    whole = {example.key for example in (*data.train, *data.dev, *data.test)}
    assert sum(data.sizes().values()) == 96
    assert not {e.key for e in data.train} & {e.key for e in data.dev}
    assert not {e.key for e in data.train} & {e.key for e in data.test}
    assert len(whole) <= 96
    assert any("set aside" in note for note in data.notes)
    assert data == load_examples(settings(data__dev=None, data__test=None))
    other = load_examples(settings(data__dev=None, data__test=None, data__split_seed=1))
    assert other.dev != data.dev


def test_split_is_stratified_and_keeps_equal_texts_together() -> None:
    examples = [Example(f"text {at // 2}", None, ("rare" if at < 8 else "common",)) for at in range(100)]
    rest, aside = stratified_split(examples, 0.25, seed=3)
    assert {e.text for e in rest}.isdisjoint(e.text for e in aside)
    assert [sum(e.labels == (label,) for e in aside) for label in ("rare", "common")] == [2, 24]
    assert sorted(map(id, (*rest, *aside))) == sorted(map(id, examples))


def test_a_label_with_one_text_stays_in_the_training_set() -> None:
    examples = [Example("only", None, ("single",)), *(Example(str(at), None, ("many",)) for at in range(9))]
    rest, aside = stratified_split(examples, 0.5, seed=0)
    assert "single" in {e.labels[0] for e in rest}
    assert "single" not in {e.labels[0] for e in aside}


@pytest.mark.parametrize("rare", [("many", "rare"), ("rare",)])
def test_no_label_is_set_aside_whole(rare: tuple[str, ...]) -> None:
    """One that is never listed first, or is a second line of a text that has another label."""
    examples = [Example(str(at), None, ("many",)) for at in range(20)]
    examples.append(Example("7" if len(rare) == 1 else "another", None, rare))
    for seed in range(20):
        rest, aside = stratified_split(examples, 0.5, seed)
        assert {label for example in rest for label in example.labels} == {"many", "rare"}
        assert {example.key for example in rest}.isdisjoint(example.key for example in aside)
        assert sorted(map(id, (*rest, *aside))) == sorted(map(id, examples))


def test_nothing_is_put_back_where_the_rest_has_every_label() -> None:
    """The draw of before, so that a seeded run has the sets that it had."""
    examples = [Example(str(at), None, ("even",) if at % 2 == 0 else ("odd", "even")) for at in range(12)]
    aside = [stratified_split(examples, 0.34, seed)[1] for seed in (0, 1)]
    assert [[example.text for example in one] for one in aside] == [
        ["3", "6", "9", "10"],
        ["0", "3", "4", "9"],
    ]


def test_only_one_label(settings: Settings, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "one.jsonl", [{"text": str(at), "label": "same"} for at in range(9)])
    with pytest.raises(DataError, match=r"one\.jsonl: only the label 'same' in it; a task needs at least 2"):
        load_examples(settings(data__train=str(path)))


def test_one_label_asked_for_is_not_blamed_on_the_file(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels: a task needs at least 2 different ones, got 1"):
        load_examples(settings(labels=("negative",)))


def test_unknown_label_in_dev_names_its_line(settings: Settings, tmp_path: Path) -> None:
    rows = [*separable(3), {"text": "film", "label": "postive"}]
    path = write_jsonl(tmp_path / "odd.jsonl", rows)
    with pytest.raises(DataError, match=r"odd\.jsonl, line 4: label 'postive' is unknown in the dev set"):
        load_examples(settings(data__dev=str(path)))


def test_a_configured_label_without_examples(settings: Settings) -> None:
    with pytest.raises(DataError, match="no training example has 'neutral'"):
        load_examples(settings(labels=("negative", "neutral", "positive")))


def test_a_label_that_the_configuration_lacks_names_its_line(settings: Settings, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "more.jsonl", [*separable(4), {"text": "film", "label": "neutral"}])
    with pytest.raises(DataError, match=r"more\.jsonl, line 5: label 'neutral' is unknown"):
        load_examples(settings(data__train=str(path), labels=("negative", "positive")))


def test_pairs_in_some_examples_only(settings: Settings, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": "a", "text_pair": "b", "label": "x"},
        {"text": "c", "label": "y"},
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 2: no text pair here"):
        load_examples(settings(data__train=str(path)))


def test_too_few_examples_to_split(settings: Settings, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "few.jsonl", separable(2))
    with pytest.raises(
        DataError, match="no label has two different texts left once a test set was set aside; add"
    ):
        load_examples(settings(data__train=str(path), data__dev=None, data__test=None))
    with pytest.raises(DataError, match=r"no label has two different texts; add examples, name data\.dev$"):
        load_examples(settings(data__train=str(path), data__dev=None))


def test_texts_in_two_sets_are_noted(settings: Settings, tmp_path: Path) -> None:
    data = load_examples(settings(data__test=str(tmp_path / "train.jsonl")))
    assert "96 of 96 test texts are in the training set too: scores flatter" in data.notes


def test_texts_with_two_labels_are_noted(settings: Settings, tmp_path: Path) -> None:
    rows = separable(40)
    write_jsonl(tmp_path / "train.jsonl", [*rows, {"text": rows[0]["text"], "label": "positive"}])
    assert rows[0]["label"] == "negative"
    (note,) = (note for note in load_examples(settings()).notes if "different labels" in note)
    assert note.startswith("1 of ")
    assert note.endswith(f"more than one: {rows[0]['text']!r}")
    write_jsonl(tmp_path / "train.jsonl", [*rows, rows[0]])
    assert not any("different labels" in note for note in load_examples(settings()).notes)


def test_digest_is_of_contents_not_of_files(settings: Settings, tmp_path: Path) -> None:
    rows = separable(40)
    write_jsonl(tmp_path / "x.jsonl", rows)
    (tmp_path / "x.csv").write_text("label,text\n" + "".join(f"{r['label']},{r['text']}\n" for r in rows))
    digests = [
        load_examples(settings(data__train=str(tmp_path / name))).digests()["train"]
        for name in ("x.jsonl", "x.csv")
    ]
    assert digests[0] == digests[1]
    assert digest([Example("a", None, ("x",))]) != digest([Example("a", "", ("x",))])


@pytest.mark.parametrize(
    ("golden", "says"),
    [
        ({"text": "good", "label": "fine"}, "'fine' is no label of this task"),
        ({"text": "good", "text_pair": "bad", "label": "positive"}, "text_pair is given for tasks on pairs"),
    ],
)
def test_a_golden_example_that_is_none_of_the_task_shows_before_training(
    settings: Settings, golden: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load_examples(settings(golden=(golden,)))
