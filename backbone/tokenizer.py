"""Text to token ids, and where a tokenizer puts its special tokens.

Owns the tokenizer's rules: the special tokens around one text and around a pair, segment ids, and how a piece in the
middle of a row begins. Knows nothing of prompts, templates or tensors. User text can never become a special token:
"[MASK]" typed by a caller is six characters of text, and no text can spell what it is called here.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from backbone.errors import BackboneError

# Words that a piece is tokenised beside, to see what it is next to one. Several, for one may melt into the piece.
ANCHORS = ("a", "b", "x", "0", "(")
Join = Literal["plain", "spaced", "glued"]
# Characters of private use around what special tokens are called here; the rest of the name nobody can guess.
_HIDDEN = "\U000f0000"
_SENTINELS = ("<extra_id_0>", "▁<extra_id_0>")  # mT5 writes it the second way


@dataclass(frozen=True, slots=True)
class SpecialLayout:
    """Special-token ids that the tokenizer's own rule puts around one text or a pair of texts."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pair_prefix: tuple[int, ...]
    pair_middle: tuple[int, ...]
    pair_suffix: tuple[int, ...]
    second_segment: int  # the segment id of the second text; the first text's is 0


class TextTokenizer:
    """The backbone's tokenizer as plain functions from text to ids; safe to use from several threads."""

    def __init__(self, pretrained: Any) -> None:
        """`pretrained` is a fast Hugging Face tokenizer; it is copied, never changed."""
        if not getattr(pretrained, "is_fast", False):
            raise BackboneError("the backbone needs a fast tokenizer (tokenizer.json)")
        self._core = Tokenizer.from_str(_text_only(pretrained))
        for at, token in pretrained.added_tokens_decoder.items():
            # It numbers added words anew; a special one has another name here, and so no number.
            if self._core.token_to_id(token.content) not in (None, at):
                raise BackboneError(
                    f"the tokenizer's added word {token.content!r} has id {at} in transformers and another when it is "
                    "read from tokenizer.json alone: save it anew with save_pretrained"
                )
        self.mask_id: int | None = _mask_of(pretrained)
        self.filler_id: int = next(
            (
                i
                for i in (pretrained.eos_token_id, pretrained.sep_token_id, pretrained.unk_token_id)
                if i is not None
            ),
            0,
        )
        self.special_ids = frozenset(pretrained.all_special_ids)
        self.vocab_size: int = len(pretrained)
        self.layout = _probe_layout(pretrained)
        self._lead = self._probe_lead()
        self._anchors = [(anchor, tuple(self.encode([anchor])[0])) for anchor in ANCHORS]
        # SentencePiece marks where words begin, and a text alone begins with one.
        self.marks_words = self.encode(["a."])[0] != self.encode(["a"])[0] + self.encode(["."])[0]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens, uncut."""
        return [
            encoding.ids for encoding in self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def encode_one(self, text: str, *, continues: bool = False) -> list[int]:
        """Token ids of one piece; `continues` says that a space stands between it and what comes before."""
        return self.encode([self.lead(text) if continues else text])[0]

    def encode_joined(self, texts: Sequence[str], join: Join) -> list[list[int]]:
        """Token ids of texts as they are behind something: "spaced" by one space, "glued" to it without any.

        "plain" is what the tokenizer makes of a text alone. Only tokenizers that mark the beginning of a word make
        something else of it when it is glued.
        """
        if join == "glued" and self.marks_words:
            return [self._glued(text) for text in texts]
        return self.encode([self.lead(text) for text in texts] if join == "spaced" else texts)

    def _glued(self, text: str) -> list[int]:
        for anchor, front in self._anchors:
            ids = self.encode([anchor + text])[0]
            if ids[: len(front)] == list(front):
                return ids[len(front) :]
        return self.encode([text])[0]  # it melts into whatever stands before it

    def beyond(self, embeddings: int) -> list[int]:
        """Ids that a row may hold and a model with so many embeddings has none for: of words, and of those special
        tokens that stand in rows (padding does not).
        """
        around = self.layout
        placed = {
            *around.prefix,
            *around.suffix,
            *around.pair_prefix,
            *around.pair_middle,
            *around.pair_suffix,
        }
        known = self._core.get_vocab(with_added_tokens=True)
        words = {at for word, at in known.items() if not word.startswith(_HIDDEN)}
        return sorted(at for at in words | placed | {self.mask_id, self.filler_id} if at and at >= embeddings)

    def lead(self, text: str) -> str:
        """The text as it must be written when a space stands before it (byte-level BPE keeps that space)."""
        return self._lead + text

    def _probe_lead(self) -> str:
        # Metaspace and WordPiece start a word by themselves; byte-level BPE wants the space in the piece.
        joined, first = self.encode(["a b"])[0], self.encode(["a"])[0]
        return "" if joined == first + self.encode(["b"])[0] else " "


def _mask_of(pretrained: Any) -> int | None:
    """The mask token, or the first of T5's sentinels, which stands for a left-out stretch of text."""
    if pretrained.mask_token_id is not None:
        return int(pretrained.mask_token_id)
    vocabulary = pretrained.get_vocab()
    return next((vocabulary[name] for name in _SENTINELS if name in vocabulary), None)


def _text_only(pretrained: Any) -> str:
    """The tokenizer's JSON in which no text can match a special token, and nothing is cut, padded or put around.

    Taking special tokens off the list of added tokens is not enough: a Unigram model has them among its ordinary
    pieces, and a word that is one is found in a WordPiece vocabulary. They are renamed, all ids stay as they are; the
    names are drawn anew in each process, for who knew one could write it in a text. Published files may also carry a
    training run's truncation and padding.
    """
    parts = json.loads(pretrained.backend_tokenizer.to_str())
    special = {token["content"] for token in parts["added_tokens"] if token["special"]}
    special |= set(pretrained.all_special_tokens)
    hidden = {token: f"{_HIDDEN}{secrets.token_hex(16)}{_HIDDEN}" for token in special}
    if (unknown := parts["model"].get("unk_token")) is not None:
        parts["model"]["unk_token"] = hidden.get(unknown, unknown)
    parts["truncation"] = parts["padding"] = parts["post_processor"] = None
    vocabulary = parts["model"]["vocab"]
    words = set(vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary))
    # Behind the vocabulary ids go by the order of this list: a special token that is left out would hand its id on to
    # the ordinary one that follows it (Qwen's "<tool_call>").
    parts["added_tokens"] = [
        {**token, "content": hidden.get(token["content"], token["content"]), "normalized": False}
        if token["special"]
        else token
        for token in parts["added_tokens"]
        if not token["special"] or token["content"] not in words
    ]
    if isinstance(vocabulary, dict):
        parts["model"]["vocab"] = {hidden.get(token, token): i for token, i in vocabulary.items()}
    else:
        parts["model"]["vocab"] = [[hidden.get(token, token), score] for token, score in vocabulary]
    return json.dumps(parts)


def _probe_layout(pretrained: Any) -> SpecialLayout:
    """Find the rule by using it, since every tokenizer class writes it down differently."""
    first, second = (
        pretrained(word, add_special_tokens=False, return_token_type_ids=False)["input_ids"]
        for word in ("a", "b")
    )
    single = pretrained("a")["input_ids"]
    pair = pretrained("a", "b", return_token_type_ids=True)
    pair_ids, types = pair["input_ids"], pair["token_type_ids"]
    at = _find(single, first)
    begin = _find(pair_ids, first)
    second_at = _find(pair_ids, second, begin + len(first))
    return SpecialLayout(
        prefix=tuple(single[:at]),
        suffix=tuple(single[at + len(first) :]),
        pair_prefix=tuple(pair_ids[:begin]),
        pair_middle=tuple(pair_ids[begin + len(first) : second_at]),
        pair_suffix=tuple(pair_ids[second_at + len(second) :]),
        second_segment=types[second_at],
    )


def _find(ids: Sequence[int], piece: Sequence[int], start: int = 0) -> int:
    for at in itertools.takewhile(lambda at: at + len(piece) <= len(ids), itertools.count(start)):
        if list(ids[at : at + len(piece)]) == list(piece):
            return at
    raise BackboneError(
        "the tokenizer changes a text when it adds special tokens; such tokenizers are not supported"
    )
