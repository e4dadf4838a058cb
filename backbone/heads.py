"""From pooled states to label scores: the heads that prompts bring along.

Owns the three kinds of head (layers of the prompt file, a verbalizer on the model's language-model head, label
embeddings) and how logits become probabilities. Rows of one batch may have different heads with different numbers of
labels; no row's score depends on another row's. Heads compute in float32 whatever the backbone's dtype, or in float64
with it. Knows nothing of rows' texts.
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
class Norm:
    """A layer norm: weight and bias [out], float32."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """weight [out, in] and bias [out], float32; activation by its name in the manifest; a norm behind it, or none."""

    weight: Tensor
    bias: Tensor | None
    activation: str | None = None
    norm: Norm | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LinearHeadWeights:
    """Layers applied one after another to the pooled state."""

    layers: tuple[Layer, ...]

    @property
    def signature(self) -> Hashable:
        """Heads with equal signatures can be computed in one batched product."""
        return tuple(
            (*layer.weight.shape, layer.bias is None, layer.activation, layer.norm and layer.norm.eps)
            for layer in self.layers
        )


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

    `transform` maps hidden states to what the output embedding multiplies; `weight` is [vocab, width]. `parameters` are
    all of its weights, for those who train them; the output embedding may be the model's input embedding. Logits are
    multiplied by `scale` and then, where `cap` is not None, kept within it: cap · tanh(logit / cap).
    """

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    parameters: tuple[nn.Parameter, ...]
    scale: float = 1.0
    cap: float | None = None


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


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is finer: float64 is for checking gradients."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


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
                if layer.norm is not None:
                    own = F.layer_norm(
                        own, own.shape[-1:], layer.norm.weight, layer.norm.bias, layer.norm.eps
                    )
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
            if layer.norm is not None:
                norms = [norm for rows in shared if (norm := heads[rows[0]].layers[depth].norm) is not None]
                scale = torch.stack([norm.weight for norm in norms]).unsqueeze(1)
                shift = torch.stack([norm.bias for norm in norms]).unsqueeze(1)
                x = F.layer_norm(x, x.shape[-1:], eps=layer.norm.eps) * scale + shift
        flat = x.flatten(0, 1).unbind()
        for at, rows in enumerate(shared):
            for nth, row in enumerate(rows):
                results[row] = flat[at * most + nth]
    return [value for value in results if value is not None]


def _activate(x: Tensor, name: str | None) -> Tensor:
    return x if name is None else _ACTIVATIONS[name](x)


def _verbalizer(states: Tensor, words: VerbalizerWords, lm_head: LanguageModelHead) -> Tensor:
    """[n, hidden] → [n, labels]: only the label words' columns of the vocabulary are computed."""
    transformed = at_least_float32(lm_head.transform(states))
    logits = transformed @ lm_head.weight[words.word_ids].to(transformed.dtype).T
    if lm_head.bias is not None:
        logits = logits + lm_head.bias[words.word_ids].to(transformed.dtype)
    if lm_head.scale != 1.0:
        logits = logits * lm_head.scale
    if lm_head.cap is not None:
        logits = lm_head.cap * torch.tanh(logits / lm_head.cap)
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
    DeBERTa-v2's own head (`legacy` is false) has none: it multiplies by the input embedding. What stands behind it is
    known for some families only: `backbone.selfcheck` compares the head of all others with the stock model's.
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(model.config, "is_encoder_decoder", False):
        return _after_a_decoder(model, output) if isinstance(output, nn.Linear) else None
    if not isinstance(output, nn.Linear) or model is base:
        return None
    if hasattr(model, "lm_predictions"):
        return _deberta_head(model.lm_predictions.lm_head, base.get_input_embeddings())
    weight, bias = output.weight, output.bias
    steps: list[Any] = []
    # DistilBERT's children are registered in another order than they are used in, and among them is its loss.
    distilbert = ("vocab_transform", "activation", "vocab_layer_norm")
    is_distilbert = all(hasattr(model, name) for name in distilbert)
    children = (getattr(model, name) for name in distilbert) if is_distilbert else model.children()
    for child in children:
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

    own = [weight, *([] if bias is None else [bias]), *(p for step in steps for p in step.parameters())]
    parameters = tuple({id(p): p for p in own}.values())
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2 and those after it
    return LanguageModelHead(transform, weight, bias, parameters, scale=_logit_scale(model.config), cap=cap)


def _logit_scale(config: Any) -> float:
    """What a family multiplies its logits with. Of one setting, some divide by it and others multiply."""
    family = config.model_type
    if family.startswith("granite"):
        return 1 / float(config.logits_scaling)
    if family.startswith("hyperclovax"):
        return float(config.logits_scaling)
    if family.startswith("cohere"):
        return float(1.0 if config.logit_scale is None else config.logit_scale)
    return 1.0


def _after_a_decoder(model: Any, output: nn.Linear) -> LanguageModelHead:
    """T5 may scale the decoder's states first, BART adds a bias of its own."""
    scale = model.config.hidden_size**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0
    bias = getattr(model, "final_logits_bias", None)
    own = tuple(output.parameters())
    return LanguageModelHead(
        lambda states: states * scale, output.weight, None if bias is None else bias[0], own
    )


def _deberta_head(head: Any, embedding: nn.Embedding) -> LanguageModelHead:
    def transform(states: Tensor) -> Tensor:
        return torch.as_tensor(head.LayerNorm(head.transform_act_fn(head.dense(states))))

    own = {id(p): p for p in (embedding.weight, *head.parameters())}
    return LanguageModelHead(transform, embedding.weight, head.bias, tuple(own.values()))
