"""From pooled states to label scores: the heads that prompts bring along.

Owns the three kinds of head (layers of the prompt file, a verbalizer on the model's language-model head, label
embeddings) and how logits become probabilities. Rows of one batch may have different heads with different numbers of
labels; no row's score depends on another row's. Heads compute in float32 whatever the backbone's dtype. Knows nothing
of rows' texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}
# A prompt with more rows than this in a batch gets a matrix product of its own; the others share one.
_OWN_PRODUCT = 16


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """weight [out, in] and bias [out], float32; activation by its name in the manifest."""

    weight: Tensor
    bias: Tensor | None
    activation: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LinearHeadWeights:
    """Layers applied one after another to the pooled state."""

    layers: tuple[Layer, ...]

    @property
    def signature(self) -> Hashable:
        """Heads with equal signatures can be computed in one batched product."""
        return tuple((*layer.weight.shape, layer.bias is None, layer.activation) for layer in self.layers)


@dataclass(frozen=True, slots=True, eq=False)
class VerbalizerWords:
    """Vocabulary ids of the label words, all labels one after another, and each label's share of them."""

    word_ids: Tensor  # [W] int64
    sizes: tuple[int, ...]  # words per label
    aggregate: Literal["mean", "max"]


@dataclass(frozen=True, slots=True, eq=False)
class LabelEmbeddings:
    """Unit vectors of the label descriptions [labels, hidden], float32; score = scale · cosine."""

    vectors: Tensor
    scale: float


HeadWeights = LinearHeadWeights | VerbalizerWords | LabelEmbeddings


@dataclass(frozen=True, slots=True, eq=False)
class LanguageModelHead:
    """The model's own head, split so that only the asked-for columns of the vocabulary are computed.

    `transform` maps hidden states to what the output embedding multiplies; `weight` is [vocab, width].
    """

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None


def score_rows(
    pooled: Tensor,
    heads: Sequence[HeadWeights],
    *,
    lm_head: LanguageModelHead | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Logits [labels_i] of each row i of `pooled` [R, hidden] under `heads[i]`."""
    results: list[Tensor | None] = [None] * len(heads)
    batches: dict[Hashable, list[int]] = defaultdict(list)
    for row, head in enumerate(heads):
        key: Hashable = head.signature if isinstance(head, LinearHeadWeights) else id(head)
        batches[key].append(row)
    for members in batches.values():
        head = heads[members[0]]
        states = pooled if len(members) == len(heads) else pooled[_index(members, pooled)]
        if isinstance(head, LinearHeadWeights):
            logits: Sequence[Tensor] = _linear(states, [_as_linear(heads[m]) for m in members])
        elif isinstance(head, VerbalizerWords):
            assert lm_head is not None, (
                "bind() refuses verbalizers on a backbone without a language-model head"
            )
            logits = _verbalizer(states.to(dtype), head, lm_head).unbind()
        else:
            logits = (head.scale * F.normalize(states, dim=-1) @ head.vectors.T).unbind()
        for member, value in zip(members, logits, strict=True):
            results[member] = value
    return [value for value in results if value is not None]


def probabilities(logits: np.ndarray[Any, Any], *, multi_label: bool) -> tuple[float, ...]:
    """Softmax of one row's logits, or each label's sigmoid; all NaN when a logit is not finite."""
    if not np.isfinite(logits).all():
        return (float("nan"),) * len(logits)
    if multi_label:
        # Split by sign, so that no exponential overflows.
        small = np.exp(-np.abs(logits))
        values = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    else:
        values = np.exp(logits - logits.max())
        values = values / values.sum()
    return tuple(values.tolist())


def _as_linear(head: HeadWeights) -> LinearHeadWeights:
    assert isinstance(head, LinearHeadWeights)
    return head


def _linear(states: Tensor, heads: Sequence[LinearHeadWeights]) -> list[Tensor]:
    """Heads of one signature: prompts with few rows share a batched product, the others have their own."""
    members: dict[int, list[int]] = defaultdict(list)
    for at, head in enumerate(heads):
        members[id(head)].append(at)
    results: list[Tensor | None] = [None] * len(heads)
    shared = [rows for rows in members.values() if len(rows) <= _OWN_PRODUCT]
    for rows in members.values():
        if len(rows) > _OWN_PRODUCT or len(shared) == 1:
            own = states if len(rows) == len(heads) else states[_index(rows, states)]
            for layer in heads[rows[0]].layers:
                own = _activate(F.linear(own, layer.weight, layer.bias), layer.activation)
            for row, value in zip(rows, own.unbind(), strict=True):
                results[row] = value
    if len(shared) > 1:
        most = max(map(len, shared))
        # Each prompt's rows side by side; short lists repeat their own first row, which nobody reads.
        table = [rows + [rows[0]] * (most - len(rows)) for rows in shared]
        x = states[_index(table, states)]  # [prompts, most, in]
        for depth, layer in enumerate(heads[0].layers):
            weights = torch.stack([heads[rows[0]].layers[depth].weight for rows in shared])
            x = torch.bmm(x, weights.transpose(1, 2))
            if layer.bias is not None:
                biases = [heads[rows[0]].layers[depth].bias for rows in shared]
                x = x + torch.stack([b for b in biases if b is not None]).unsqueeze(1)
            x = _activate(x, layer.activation)
        flat = x.flatten(0, 1).unbind()
        for at, rows in enumerate(shared):
            for nth, row in enumerate(rows):
                results[row] = flat[at * most + nth]
    return [value for value in results if value is not None]


def _activate(x: Tensor, name: str | None) -> Tensor:
    return x if name is None else _ACTIVATIONS[name](x)


def _verbalizer(states: Tensor, words: VerbalizerWords, lm_head: LanguageModelHead) -> Tensor:
    """[n, hidden] → [n, labels]: only the label words' columns of the vocabulary are computed."""
    transformed = lm_head.transform(states).float()
    logits = transformed @ lm_head.weight[words.word_ids].float().T
    if lm_head.bias is not None:
        logits = logits + lm_head.bias[words.word_ids].float()
    parts = torch.split(logits, list(words.sizes), dim=-1)
    if words.aggregate == "max":
        return torch.stack([part.amax(dim=-1) for part in parts], dim=-1)
    return torch.stack([part.mean(dim=-1) for part in parts], dim=-1)


def _index(rows: Sequence[int] | Sequence[Sequence[int]], like: Tensor) -> Tensor:
    index = torch.tensor(rows)
    return index if like.device.type == "cpu" else index.pin_memory().to(like.device, non_blocking=True)


def split_lm_head(model: Any, base: Any) -> LanguageModelHead | None:
    """Take a stock model's language-model head apart, or None if it has none.

    The output embedding is the last Linear. What stands between the base model and it (BERT's `transform`, RoBERTa's
    dense, GELU and norm, nothing for most decoders) is run by the stock module itself with that Linear taken out.
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(output, nn.Linear) or model is base:
        return None
    weight, bias = output.weight.detach(), None if output.bias is None else output.bias.detach()
    steps: list[Any] = []
    for child in model.children():
        if child is output or any(module is base for module in child.modules()):
            continue
        for module in list(child.modules()):
            for attribute, inner in list(module.named_children()):
                if inner is output:
                    setattr(module, attribute, nn.Identity())
        steps.append(child)

    def transform(states: Tensor) -> Tensor:
        for step in steps:
            states = step(states)
        return states

    return LanguageModelHead(transform, weight, bias)
