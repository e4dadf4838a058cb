"""A prompt as the forward wants it: tensors on the device, checked against the backbone.

Owns `DevicePrompt` and how the tensors of a prompt file become one. Knows nothing of rows or batches, and nothing of
where prompt files come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.heads import HeadWeights, LabelEmbeddings, Layer, LinearHeadWeights, VerbalizerWords
from prompt_store import IncompatiblePrompt, LabelEmbeddingHead, LinearHead, Manifest, VerbalizerHead


@dataclass(frozen=True, slots=True, eq=False)
class DevicePrompt:
    """Everything the forward needs of one prompt.

    `soft_prompt` [P, embedding_width]; `prefix_keys` and `prefix_values`: one [P, kv_heads, head_dim] for each layer.
    `calibration` is (temperature, bias [labels] or None).
    """

    soft_prompt: Tensor | None
    prefix_keys: tuple[Tensor, ...]
    prefix_values: tuple[Tensor, ...]
    head: HeadWeights
    pooler: bool
    position_offset: int
    multi_label: bool
    calibration: tuple[float, Tensor | None] | None
    num_labels: int
    nbytes: int

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
        prefix_keys=() if keys is None else keys.unbind(),
        prefix_values=() if values is None else values.unbind(),
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
