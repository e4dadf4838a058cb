"""Owns the values that training starts from. Knows the backbone's embeddings; knows no optimiser and no data
file.

Soft prompts start as embeddings of real tokens (Lester et al. 2021, section 3.2), never as plain N(0, 1),
whose rows are many times longer than word embeddings and which the frozen layers have never seen the like of.
In order: the words of the template's own `{soft:"…"}` slots, the task's description, the label words (each
label the mean of its tokens, scaled back to a word's norm), and a sample of the tokens that the training
texts use most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from backbone import Backbone, Row
from prompt_store import Template
from trainer.config import Initialisation
from trainer.networks import generator_of

# As in Lester et al.: a vocabulary sample is drawn from the commonest tokens only.
COMMONEST = 5000
RANDOM_PREFIX_SCALE = 0.02
_STACKS = ("encoder", "decoder", "cross")
# Which of a seed's numbers a random prefix is drawn from, the next two for further stacks (`generator_of`).
_PURPOSE = 5


class Initialiser:
    """Draws starting values for one task. The same seed gives the same values.

    `rows` are training rows without virtual tokens; their tokens are the vocabulary that is sampled from.
    """

    def __init__(
        self, backbone: Backbone, rows: Sequence[Row], *, task_text: str, label_texts: Sequence[str]
    ) -> None:
        self._backbone = backbone
        self._task_text, self._label_texts = task_text, label_texts
        special = backbone.tokenizer.special_ids
        counts = Counter(
            token for row in rows for token in row.token_ids if token >= 0 and token not in special
        )
        self._common = [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))][
            :COMMONEST
        ]
        if not self._common:
            self._common = [token for token in range(backbone.tokenizer.vocab_size) if token not in special][
                :COMMONEST
            ]
        self._norm = float(backbone.token_embedding(self._common).norm(dim=1).mean())

    def soft_prompt(self, template: Template, sources: Sequence[Initialisation], seed: int) -> Tensor:
        """Starting soft prompt [num_virtual_tokens, embedding_width], float32, in the order of the template's
        slots.

        `template` may still hold initial words; slots with a number are filled from `sources`, one after
        another.
        """
        generator = np.random.default_rng([seed, 1])
        numbered = sum(slot.count or 0 for slot in template.soft_slots)
        filling = iter(self._vectors(sources, numbered, generator))
        rows: list[Tensor] = []
        for slot in template.soft_slots:
            if slot.count is None:
                ids = self._backbone.tokenizer.encode_one(slot.init or "") or self._common[:1]
                rows.extend(self._embed(ids))
            else:
                rows.extend(next(filling) for _ in range(slot.count))
        return torch.stack(rows).clone()

    def _tokens(self, sources: Sequence[Initialisation], count: int, seed: int) -> list[int]:
        generator = np.random.default_rng([seed, 1])
        ids: list[int] = []
        for source in sources:
            if source == "text":
                ids += self._backbone.tokenizer.encode_one(self._task_text)
            elif source == "labels":
                labels = list(self._label_texts)
                generator.shuffle(labels)
                ids += [token for label in labels for token in self._label_tokens(label)]
        ids = ids[:count]
        return ids + self._sample(count - len(ids), generator)

    def prefix(
        self, sources: Sequence[Initialisation], count: int, seed: int, *, stack: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Starting keys and values, each [layers, count, kv_heads, head_dim], float32.

        `stack` is one of the backbone's `prefix_stacks`; None: the one that reads rows. They are the frozen model's
        own for a text of real tokens (Li & Liang 2021, section 7.4); with "random" as a source, small Gaussian ones
        as P-Tuning v2's reference code has them.
        """
        if "random" not in sources:
            return self._backbone.key_values(self._tokens(sources, count, seed), stack)
        shape = self._backbone.shape.stack(stack or self._backbone.prefix_stack)
        size = (shape.layers, count, shape.kv_heads, shape.head_dim)
        # An encoder-decoder's stacks of equal shapes start from different values.
        nth = _STACKS.index(stack) if stack and self._backbone.shape.decoder is not None else 0
        generator = generator_of(seed, _PURPOSE + nth)
        keys, values = (torch.randn(size, generator=generator) * RANDOM_PREFIX_SCALE for _ in range(2))
        return keys, values

    def _vectors(
        self, sources: Sequence[Initialisation], count: int, generator: np.random.Generator
    ) -> list[Tensor]:
        vectors: list[Tensor] = []
        for source in sources:
            if source == "text":
                ids = self._backbone.tokenizer.encode_one(self._task_text)
                vectors.extend(self._embed(ids))
            elif source == "labels":
                vectors.extend(self._label_vectors(generator))
            elif source == "vocabulary":
                missing = max(0, count - len(vectors))
                vectors.extend(self._embed(self._sample(missing, generator)))
            else:
                missing = max(0, count - len(vectors))
                width = self._backbone.shape.embedding_width
                drawn = torch.from_numpy(generator.standard_normal((missing, width)).astype(np.float32))
                vectors.extend(drawn * (self._norm / width**0.5))
        missing = count - len(vectors)
        if missing > 0:  # the sources had too few words: the rest is vocabulary
            vectors.extend(self._embed(self._sample(missing, generator)))
        return vectors[:count]

    def _embed(self, ids: Sequence[int]) -> Tensor:
        if not ids:
            return torch.empty(0, self._backbone.shape.embedding_width)
        return self._backbone.token_embedding(ids).detach().cpu()

    def _label_vectors(self, generator: np.random.Generator) -> list[Tensor]:
        texts = list(self._label_texts)
        generator.shuffle(texts)  # with more labels than virtual tokens, each seed starts from others
        vectors = []
        for text in texts:
            ids = self._label_tokens(text)
            if ids:
                mean = self._embed(ids).mean(dim=0)
                vectors.append(mean * (self._norm / mean.norm().clamp(min=1e-6)))
        return vectors

    def _label_tokens(self, text: str) -> list[int]:
        # As within a sentence: where a space belongs to a token, a word without one is another, rarer token.
        return self._backbone.tokenizer.encode_one(text, continues=True) if text else []

    def _sample(self, count: int, generator: np.random.Generator) -> list[int]:
        replace = count > len(self._common)
        return [int(token) for token in generator.choice(self._common, size=count, replace=replace)]
