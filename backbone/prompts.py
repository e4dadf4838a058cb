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

from backbone.heads import HeadWeights, LabelEmbeddings, Layer, LinearHeadWeights, Norm, VerbalizerWords
from backbone.native import PrefixAddresses
from backbone.packing import PrefixSpan
from prompt_store import IncompatiblePrompt, LabelEmbeddingHead, LinearHead, Manifest, VerbalizerHead


@dataclass(frozen=True, slots=True, eq=False)
class StackPrefix:
    """Keys and values of one stack of an encoder-decoder: one [P, kv_heads, head_dim] for each layer, or none."""

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()

    @property
    def length(self) -> int:
        """Keys (and values) in each layer."""
        return self.keys[0].shape[0] if self.keys else 0


NO_PREFIX = StackPrefix()


@dataclass(frozen=True, slots=True, eq=False)
class DecoderPrompt:
    """What an encoder-decoder's decoder is given: prefixes of its own attention and of its cross attention."""

    own: StackPrefix
    cross: StackPrefix
    position_offset: int


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
    decoder: DecoderPrompt | None = None  # of an encoder-decoder whose decoder is read
    members: tuple[
        DevicePrompt, ...
    ] = ()  # of an ensemble (`backbone.ensemble`), which has no tensors beside theirs

    @property
    def num_virtual_tokens(self) -> int:
        """Soft tokens and prefix tokens together, of all members: what this prompt adds to the work of a row."""
        if self.members:
            return sum(member.num_virtual_tokens for member in self.members)
        decoder = 0 if self.decoder is None else max(self.decoder.own.length, self.decoder.cross.length)
        return self.num_soft_tokens + max(self.num_prefix_tokens, decoder)

    @property
    def num_soft_tokens(self) -> int:
        """Rows of the soft prompt."""
        return 0 if self.soft_prompt is None else self.soft_prompt.shape[0]

    @property
    def num_prefix_tokens(self) -> int:
        """Keys (and values) of the prefix in each layer; of an encoder-decoder, of its encoder's."""
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
        assert not p.members, "an ensemble's rows are its members' rows"
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


def refuse_misfit(manifest: Manifest, lm_head: bool, pooler: bool, decoder: bool, *, name: str) -> None:
    """Refuse a prompt that reads from parts which the backbone `name` does not have.

    `decoder` says that it is an encoder-decoder.

    Raises:
        IncompatiblePrompt: with what to use instead.

    """
    if isinstance(manifest.head, VerbalizerHead) and not lm_head:
        raise IncompatiblePrompt(
            f"a verbalizer needs a language-model head, which {name} does not have, or none that passed the check "
            "when it was loaded: use a label_embeddings head or a linear head"
        )
    if isinstance(manifest.head, VerbalizerHead) and manifest.pooling != "mask":
        raise IncompatiblePrompt(
            f"a verbalizer reads at the mask: expected pooling 'mask', got {manifest.pooling!r}"
        )
    if manifest.decoder is not None and not decoder:
        raise IncompatiblePrompt(f"{name} is no encoder-decoder: leave the manifest's decoder out")
    if isinstance(manifest.head, VerbalizerHead) and decoder and manifest.decoder is None:
        raise IncompatiblePrompt(
            f"a verbalizer on {name} reads its decoder: set decoder.reads to 'start', 'mask' or 'copy'"
        )
    if manifest.pooling == "pooler" and not pooler:
        raise IncompatiblePrompt(f"{name} has no pooler: use pooling 'mean', 'cls' or 'last'")


def bind(
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    *,
    prefix_stacks: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
    word_id: Callable[[str], int],
) -> DevicePrompt:
    """Build a `DevicePrompt` from tensors named as in the prompt file.

    Casts keep the autograd graph, so the trainer passes its parameters here. Soft prompt and prefix take the
    backbone's `dtype`, heads stay float32. Of `prefix_stacks` the first is the
    one that reads the row. `word_id` maps a label word to its vocabulary id.

    Raises:
        IncompatiblePrompt: the prompt has parts that this backbone has no place for.

    """
    stacks = {name.split(".")[1] for name in tensors if name.startswith("prefix.")}
    if stacks - set(prefix_stacks):
        raise IncompatiblePrompt(
            f"the prompt has a prefix for {sorted(stacks)}, this backbone takes one for {sorted(prefix_stacks)}"
            + (
                ": set the manifest's decoder"
                if stacks & {"decoder", "cross"} and manifest.decoder is None
                else ""
            )
        )

    def ready(name: str, to: torch.dtype) -> Tensor | None:
        tensor = tensors.get(name)
        return None if tensor is None else tensor.to(device=device, dtype=to)

    def prefix(stack: str) -> StackPrefix:
        keys, values = ready(f"prefix.{stack}.key", dtype), ready(f"prefix.{stack}.value", dtype)
        if keys is None or values is None:
            return NO_PREFIX
        return StackPrefix(keys.contiguous().unbind(), values.contiguous().unbind())

    soft = ready("soft_prompt", dtype)
    prefixes = {stack: prefix(stack) for stack in prefix_stacks}
    first = prefixes[prefix_stacks[0]]
    decoder = None
    if manifest.decoder is not None:
        decoder = DecoderPrompt(prefixes["decoder"], prefixes["cross"], manifest.decoder.position_offset)
    precise = torch.promote_types(dtype, torch.float32)
    head: HeadWeights
    if isinstance(manifest.head, LinearHead):
        layers = []
        for at, layer in enumerate(manifest.head.layers):
            weight, bias = ready(f"head.{at}.weight", precise), ready(f"head.{at}.bias", precise)
            if weight is None:
                raise IncompatiblePrompt(f"the tensor head.{at}.weight is missing")
            norm = None
            if layer.norm_eps is not None:
                by, plus = (ready(f"head.{at}.norm.{kind}", precise) for kind in ("weight", "bias"))
                if by is None or plus is None:
                    raise IncompatiblePrompt(f"the tensors head.{at}.norm.weight and .bias are missing")
                norm = Norm(by, plus, layer.norm_eps)
            layers.append(Layer(weight, bias, layer.activation, norm))
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
        vectors = ready("verbalizer.label_embeddings", precise)
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
        prefix_keys=first.keys,
        prefix_values=first.values,
        prefix_addresses=PrefixAddresses.of(first.keys, first.values),
        head=head,
        pooler=manifest.pooling == "pooler",
        position_offset=manifest.position_offset,
        multi_label=manifest.multi_label,
        calibration=calibration,
        num_labels=len(manifest.labels),
        nbytes=_nbytes(soft, list(prefixes.values()), head),
        decoder=decoder,
    )


def _nbytes(soft: Tensor | None, prefixes: Sequence[StackPrefix], head: HeadWeights) -> int:
    tensors: list[Tensor | None] = [soft]
    tensors += [layer for prefix in prefixes for layer in (*prefix.keys, *prefix.values)]
    if isinstance(head, LinearHeadWeights):
        tensors += [t for layer in head.layers for t in (layer.weight, layer.bias)]
        tensors += [t for layer in head.layers if layer.norm for t in (layer.norm.weight, layer.norm.bias)]
    elif isinstance(head, VerbalizerWords):
        tensors.append(head.word_ids)
    else:
        tensors.append(head.vectors)
    return sum(t.nbytes for t in tensors if t is not None)
