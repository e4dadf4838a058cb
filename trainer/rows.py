"""Owns the training rows of each epoch: tokenised once, or anew with some words left out. Knows no tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backbone import Row, RowEncoder
from trainer.scores import Targets, one_hot
from trainer.sources import Example


class TrainingRows:
    """Rows and targets [examples, labels] of the training set, in its order.

    With word dropout (Iyyer et al. 2015, section 3.2) every epoch sees each text without some of its words, drawn
    from (seed, epoch, the example's place) alone. A text keeps at least one word; what has no spaces is one word.
    """

    def __init__(
        self, encoder: RowEncoder, examples: Sequence[Example], labels: Sequence[str], *, word_dropout: float
    ) -> None:
        self._encoder, self._examples, self._word_dropout = encoder, examples, word_dropout
        self.targets: Targets = one_hot([example.labels for example in examples], labels)
        self.whole = self._encode([(example.text, example.text_pair) for example in examples])
        self.lengths = tuple(len(row) for row in self.whole)

    def __len__(self) -> int:
        return len(self._examples)

    def batch(self, places: Sequence[int], seed: int, epoch: int) -> Sequence[Row]:
        """The rows of the examples at these places, as this epoch sees them."""
        if not self._word_dropout:
            return [self.whole[at] for at in places]
        dropped = []
        for at in places:
            generator, example = np.random.default_rng([seed, 3, epoch, at]), self._examples[at]
            pair = example.text_pair
            dropped.append((self._drop(example.text, generator), pair and self._drop(pair, generator)))
        return self._encode(dropped)

    def _drop(self, text: str, generator: np.random.Generator) -> str:
        words = text.split(" ")
        chances = generator.random(len(words))
        kept = [word for word, chance in zip(words, chances, strict=True) if chance >= self._word_dropout]
        return " ".join(kept) if any(kept) else text

    def _encode(self, texts: Sequence[tuple[str, str | None]]) -> Sequence[Row]:
        pairs = [pair for _, pair in texts] if self._encoder.takes_pair else None
        return self._encoder.encode([text for text, _ in texts], pairs)
