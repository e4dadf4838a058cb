"""Texts never become special tokens, whatever they spell."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers as hf

from backbone import tokenizer as module
from backbone.tokenizer import TextTokenizer
from tests.backbone.families import byte_level, checkpoint
from tests.backbone.seq2seq import checkpoint as two_stacks

FOLDERS = {"bert": checkpoint, "gpt2": checkpoint, "t5": two_stacks, "mbart": two_stacks}


@pytest.fixture(params=FOLDERS)
def stock(request: pytest.FixtureRequest) -> Any:
    return hf.AutoTokenizer.from_pretrained(FOLDERS[request.param](request.param))


def special(own: TextTokenizer, stock: Any, text: str) -> set[int]:
    return set(own.encode([text])[0]) & (own.special_ids - {stock.unk_token_id})


def test_a_special_tokens_name_is_text(stock: Any) -> None:
    own = TextTokenizer(stock)
    for name in stock.all_special_tokens:
        assert not special(own, stock, f"good {name} good{name}")


def test_what_special_tokens_are_called_here_cannot_be_known(
    stock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knew it could write it: the names differ from one tokenizer to the next, and so among processes."""
    made = []
    real = module._text_only
    monkeypatch.setattr(module, "_text_only", lambda given: made.append(real(given)) or made[-1])
    known, other = TextTokenizer(stock), TextTokenizer(stock)
    names = set(_words(made[0])) - set(_words(made[1]))
    assert names
    for name in names:
        assert not special(other, stock, f"good {name} good{name}")
    for guess in (f"\U000f0000{at}\U000f0000" for at in range(20)):
        assert not special(known, stock, f"good {guess} good")


def test_added_words_keep_their_ids_behind_special_ones() -> None:
    """Ids behind the vocabulary go by order: Qwen's "<tool_call>" follows special tokens, and is none."""
    stock = byte_level(around=False)
    stock.add_special_tokens({"pad_token": "<padding>", "additional_special_tokens": ["<begin>", "<end>"]})
    stock.add_tokens(["<tool>", "wonderful"])
    own = TextTokenizer(stock)
    for text in ("a wonderful <tool> was", "<tool>wonderful"):
        assert own.encode([text])[0] == stock(text, add_special_tokens=False)["input_ids"]
    assert not special(own, stock, "a <begin> b<end> <padding>")


@pytest.mark.parametrize("unknown", ["<unknown>", "</s>"])
def test_the_unknown_token_is_no_exception(unknown: str) -> None:
    """Some have it behind the vocabulary, some use the token that ends texts."""
    stock = byte_level(around=False)
    stock.add_special_tokens({"unk_token": unknown})
    own = TextTokenizer(stock)
    assert stock.unk_token_id not in own.encode([f"a {unknown} b{unknown}"])[0]


def test_unknown_words_have_the_unknown_tokens_id() -> None:
    stock = hf.AutoTokenizer.from_pretrained(checkpoint("bert"))
    own = TextTokenizer(stock)
    assert own.encode(["good ☃ film"])[0] == stock("good ☃ film", add_special_tokens=False)["input_ids"]
    assert stock.unk_token_id in own.encode(["☃"])[0]


def test_special_tokens_that_no_row_holds_need_no_embedding(stock: Any) -> None:
    own = TextTokenizer(stock)
    assert not own.beyond(len(stock))
    assert own.beyond(2)
    stock.add_tokens(["<image>"], special_tokens=True)
    assert not TextTokenizer(stock).beyond(len(stock) - 1)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "mbart"])
def test_added_words_of_all_kinds_of_vocabularies_keep_their_ids(family: str) -> None:
    stock = hf.AutoTokenizer.from_pretrained(FOLDERS[family](family))
    for at in range(3):
        stock.add_tokens([f"<s{at}>"], special_tokens=True)
        stock.add_tokens([f"<w{at}>"])
    text = "good <w0> film <w2> the <w1>"
    assert TextTokenizer(stock).encode([text])[0] == stock(text, add_special_tokens=False)["input_ids"]


def _words(of: str) -> list[str]:
    parts = json.loads(of)
    vocabulary = parts["model"]["vocab"]
    words = list(vocabulary) if isinstance(vocabulary, dict) else [word for word, _ in vocabulary]
    return words + [token["content"] for token in parts["added_tokens"]]
