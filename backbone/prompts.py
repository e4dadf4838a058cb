"""A prompt as the forward wants it: tensors on the device, checked against the backbone.

Owns `DevicePrompt` and how the tensors of a prompt file become one. Knows nothing of rows or batches, and nothing of
where prompt files come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.heads import HeadWeights, LabelEmbeddings, Layer, LinearHeadWeights, VerbalizerWords
from backbone.native import PrefixAddresses
from backbone.packing import PrefixSpan
from backbone.tokenizer import TextTokenizer
from prompt_store import IncompatiblePrompt, LabelEmbeddingHead, LinearHead, Manifest, VerbalizerHead


@dataclass(frozen=True, slots=True, eq=False)
class DevicePrompt:
    """Everything the forward needs of one prompt.

    `soft_prompt` [P, embedding_width]; `prefix_keys` and `prefix_values`: one [P, kv_heads, head_dim] for each layer.
    `prefix_addresses` says where they lie on a CPU. `calibration` is (temperature, bias [labels] or None).
    """

    soft_prompt: Tensor | None
    prefix_keys: tuple[Tensor, ...]
    prefix_values: tuple[Tensor, ...]
    prefix_addresses: PrefixAddresses
    head: HeadWeights
    pooler: bool
    position_offset: int
    multi_label: bool
    calibration: tuple[float, Tensor | None] | None
    num_labels: int
    nbytes: int
    folded: DevicePrompt | None = None  # the same prompt with its leading virtual tokens as a prefix
    folded_tokens: int = 0  # how many these are

    @property
    def num_virtual_tokens(self) -> int:
        """Soft tokens and prefix tokens together: what this prompt adds to the work of a row."""
        return self.num_soft_tokens + self.num_prefix_tokens

    @property
    def num_soft_tokens(self) -> int:
        """Rows of the soft prompt."""
        return 0 if self.soft_prompt is None else self.soft_prompt.shape[0]

    @property
    def num_prefix_tokens(self) -> int:
        """Keys (and values) of the prefix in each layer."""
        return self.prefix_keys[0].shape[0] if self.prefix_keys else 0

    def with_prefix(self, keys: Tensor, values: Tensor) -> DevicePrompt:
        """The prompt with more keys and values, each [layers, tokens, kv_heads, head_dim], before its own."""
        parts = []
        for more, own in ((keys, self.prefix_keys), (values, self.prefix_values)):
            joined = torch.cat([more, torch.stack(own)], dim=1) if own else more
            parts.append(joined.contiguous().unbind())
        return replace(
            self,
            prefix_keys=parts[0],
            prefix_values=parts[1],
            prefix_addresses=PrefixAddresses.of(parts[0], parts[1]),
            nbytes=self.nbytes + sum(layer.nbytes for layers in parts for layer in layers),
        )

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits [labels] with the bias added and divided by the temperature."""
        if self.calibration is None:
            return logits
        temperature, bias = self.calibration
        return (logits if bias is None else logits + bias) / temperature


@dataclass(frozen=True, slots=True, eq=False)
class GatheredPrompts:
    """The prompts of a batch's rows, each distinct one once.

    For each row: `soft_starts`, the place of its prompt's first soft token in `soft` [S, embedding_width] (None when no
    prompt has any), and `prefixes`, where its prefix begins among `prefix_keys[layer]` and `prefix_values[layer]` laid
    one after another, and how long it is.
    """

    soft_starts: Sequence[int]
    prefixes: Sequence[PrefixSpan]
    soft: Tensor | None
    prefix_keys: Sequence[Sequence[Tensor]]
    prefix_values: Sequence[Sequence[Tensor]]


def gather(prompts: Sequence[DevicePrompt]) -> GatheredPrompts:
    """Lay the distinct prompts of a batch side by side: rows of one task share its soft prompt and prefix."""
    distinct = list({id(p): p for p in prompts}.values())
    soft_starts, prefixes, soft_at, prefix_at = {}, {}, 0, 0
    for p in distinct:
        soft_starts[id(p)], prefixes[id(p)] = soft_at, PrefixSpan(prefix_at, p.num_prefix_tokens)
        soft_at += p.num_soft_tokens
        prefix_at += p.num_prefix_tokens
    softs = [p.soft_prompt for p in distinct if p.soft_prompt is not None]
    with_prefix = [p for p in distinct if p.prefix_keys]
    return GatheredPrompts(
        soft_starts=[soft_starts[id(p)] for p in prompts],
        prefixes=[prefixes[id(p)] for p in prompts],
        soft=torch.cat(softs) if softs else None,
        prefix_keys=list(zip(*(p.prefix_keys for p in with_prefix), strict=True)),
        prefix_values=list(zip(*(p.prefix_values for p in with_prefix), strict=True)),
    )


def refuse_misfit(manifest: Manifest, *, name: str, lm_head: bool, pooler: bool) -> None:
    """Refuse a prompt that reads from parts which the backbone `name` does not have.

    Raises:
        IncompatiblePrompt: with what to use instead.

    """
    if isinstance(manifest.head, VerbalizerHead) and not lm_head:
        raise IncompatiblePrompt(
            f"a verbalizer needs a language-model head, which {name} does not have: use a label_embeddings "
            "head or a linear head"
        )
    if isinstance(manifest.head, VerbalizerHead) and manifest.pooling != "mask":
        raise IncompatiblePrompt(
            f"a verbalizer reads at the mask: expected pooling 'mask', got {manifest.pooling!r}"
        )
    if manifest.pooling == "pooler" and not pooler:
        raise IncompatiblePrompt(f"{name} has no pooler: use pooling 'mean', 'cls' or 'last'")


def label_word_id(tokenizer: TextTokenizer, word: str, template: str, name: str) -> int:
    """The vocabulary id of a verbalizer's word, as it stands at the template's mask.

    Raises:
        IncompatiblePrompt: the word is not one token of the backbone `name`.

    """
    before = template.split("{mask}")[0]
    ids = tokenizer.encode_one(word.strip(), continues=before[-1:].isspace())
    if any(i in tokenizer.special_ids for i in ids):
        raise IncompatiblePrompt(f"the label word {word!r} is not in the vocabulary of {name}")
    if len(ids) != 1:
        raise IncompatiblePrompt(
            f"the label word {word!r} is {len(ids)} tokens for {name}; a verbalizer's words must be one token"
        )
    return ids[0]


def bind(
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    *,
    prefix_stack: str,
    dtype: torch.dtype,
    device: torch.device,
    word_id: Callable[[str], int],
) -> DevicePrompt:
    """Build a `DevicePrompt` from tensors named as in the prompt file.

    Casts keep the autograd graph, so the trainer passes its parameters here. Soft prompt and prefix take the
    backbone's `dtype`, heads stay float32. `word_id` maps a label word to its vocabulary id.

    Raises:
        IncompatiblePrompt: the prompt has parts that this backbone has no place for.

    """
    stacks = {name.split(".")[1] for name in tensors if name.startswith("prefix.")}
    if stacks - {prefix_stack}:
        raise IncompatiblePrompt(
            f"the prompt has a prefix for {sorted(stacks)}, this backbone takes one for ['{prefix_stack}']"
        )

    def ready(name: str, to: torch.dtype) -> Tensor | None:
        tensor = tensors.get(name)
        return None if tensor is None else tensor.to(device=device, dtype=to)

    soft = ready("soft_prompt", dtype)
    keys, values = ready(f"prefix.{prefix_stack}.key", dtype), ready(f"prefix.{prefix_stack}.value", dtype)
    key_layers = () if keys is None else keys.contiguous().unbind()
    value_layers = () if values is None else values.contiguous().unbind()
    head: HeadWeights
    if isinstance(manifest.head, LinearHead):
        layers = []
        for at, layer in enumerate(manifest.head.layers):
            weight, bias = ready(f"head.{at}.weight", torch.float32), ready(f"head.{at}.bias", torch.float32)
            if weight is None:
                raise IncompatiblePrompt(f"the tensor head.{at}.weight is missing")
            layers.append(Layer(weight, bias, layer.activation))
        head = LinearHeadWeights(tuple(layers))
    elif isinstance(manifest.head, VerbalizerHead):
        ids = [word_id(word) for words in manifest.head.words for word in words]
        if len(set(ids)) != len(ids):
            raise IncompatiblePrompt(
                "two label words are the same token for this backbone: each must be its own"
            )
        head = VerbalizerWords(
            torch.tensor(ids, device=device), tuple(map(len, manifest.head.words)), manifest.head.aggregate
        )
    else:
        assert isinstance(manifest.head, LabelEmbeddingHead)
        vectors = ready("verbalizer.label_embeddings", torch.float32)
        if vectors is None:
            raise IncompatiblePrompt("the tensor verbalizer.label_embeddings is missing")
        head = LabelEmbeddings(F.normalize(vectors, dim=-1), manifest.head.scale)
    calibration = None
    if manifest.calibration is not None:
        shift = manifest.calibration.bias
        calibration = (
            manifest.calibration.temperature,
            None if shift is None else torch.tensor(shift, dtype=torch.float32, device=device),
        )
    return DevicePrompt(
        soft_prompt=soft,
        prefix_keys=key_layers,
        prefix_values=value_layers,
        prefix_addresses=PrefixAddresses.of(key_layers, value_layers),
        head=head,
        pooler=manifest.pooling == "pooler",
        position_offset=manifest.position_offset,
        multi_label=manifest.multi_label,
        calibration=calibration,
        num_labels=len(manifest.labels),
        nbytes=_nbytes(soft, keys, values, head),
    )


def _nbytes(soft: Tensor | None, keys: Tensor | None, values: Tensor | None, head: HeadWeights) -> int:
    tensors: list[Tensor | None] = [soft, keys, values]
    if isinstance(head, LinearHeadWeights):
        tensors += [t for layer in head.layers for t in (layer.weight, layer.bias)]
    elif isinstance(head, VerbalizerWords):
        tensors.append(head.word_ids)
    else:
        tensors.append(head.vectors)
    return sum(t.nbytes for t in tensors if t is not None)
