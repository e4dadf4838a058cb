from __future__ import annotations

from backbone import Backbone, Row
from backbone.family import bare_manifest
from trainer import Example
from trainer.rows import TrainingRows

EXAMPLES = [
    Example("the film is not very good", None, ("a",)),
    Example("good", None, ("b",)),
    Example("  ", None, ("a",)),
]


def _rows(backbone: Backbone, word_dropout: float) -> TrainingRows:
    encoder = backbone.row_encoder(bare_manifest(backbone.shape, max_tokens=32))
    return TrainingRows(encoder, EXAMPLES, ("a", "b"), word_dropout=word_dropout)


def _epoch(rows: TrainingRows, seed: int, epoch: int) -> list[Row]:
    return list(rows.batch(range(len(rows)), seed, epoch))


def test_a_row_does_not_depend_on_its_batch(bert: Backbone) -> None:
    rows = _rows(bert, 0.5)
    assert [rows.batch([at], 0, 7)[0] for at in range(3)] == _epoch(rows, 0, 7)


def test_without_dropout_every_epoch_sees_the_same_rows(bert: Backbone) -> None:
    rows = _rows(bert, 0.0)
    assert _epoch(rows, 0, 0) == _epoch(rows, 1, 5) == list(rows.whole)
    assert rows.targets.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert rows.lengths == tuple(len(row) for row in rows.whole)


def test_dropout_depends_on_seed_and_epoch_alone(bert: Backbone) -> None:
    rows, other = _rows(bert, 0.5), _rows(bert, 0.5)
    epochs = [
        [row.token_ids for row in _epoch(rows, seed, epoch)] for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [row.token_ids for row in _epoch(other, 0, 1)] == epochs[1]


def test_dropout_leaves_words_out_in_order_and_keeps_at_least_one(bert: Backbone) -> None:
    rows = _rows(bert, 0.9)
    whole = rows.whole[0].token_ids
    for epoch in range(30):
        first, single, blank = _epoch(rows, 0, epoch)
        position = iter(whole)
        assert all(token in position for token in first.token_ids)
        assert len(first) > 2  # more than the special tokens
        assert single.token_ids == rows.whole[1].token_ids
        assert blank.token_ids == rows.whole[2].token_ids


def test_of_pairs_both_texts_are_learned_from(bert: Backbone) -> None:
    pairs = [Example("the film is good", "this book is not warm", ("a",)), Example("red", "blue", ("b",))]
    manifest = bare_manifest(bert.shape, max_tokens=32).model_copy(update={"template": "{text} {text_pair}"})
    encoder = bert.row_encoder(manifest)
    whole = encoder.encode([e.text for e in pairs], [e.text_pair for e in pairs])
    assert list(TrainingRows(encoder, pairs, ("a", "b"), word_dropout=0.0).whole) == list(whole)
    second = bert.tokenizer.encode_one("this book is not warm")
    assert list(whole[0].token_ids)[-len(second) - 1 : -1] == second
    rows = TrainingRows(encoder, pairs, ("a", "b"), word_dropout=0.5)
    seen = [rows.batch([0], 0, epoch)[0].token_ids for epoch in range(40)]
    for text in ("the film is good", "this book is not warm"):
        own = set(bert.tokenizer.encode_one(text)) - set(bert.tokenizer.encode_one("is"))
        assert any(own <= set(ids) for ids in seen)
        assert any(not own <= set(ids) for ids in seen)


def test_about_the_given_share_is_left_out(bert: Backbone) -> None:
    rows = _rows(bert, 0.25)
    kept = [len(_epoch(rows, 0, epoch)[0]) - 2 for epoch in range(400)]
    assert 0.7 < sum(kept) / (400 * (len(rows.whole[0]) - 2)) < 0.8
