"""Owns the question which prompts are what transformers' own classifiers compute behind PEFT's virtual tokens.

Knows the stock heads through `peft_heads`; writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from backbone import Backbone
from prompt_store import LabelEmbeddingHead, Prompt, Template, VerbalizerHead
from prompt_store.prompt import Array
from trainer.errors import AdapterError
from trainer.peft_format import HEAD_PREFIX
from trainer.peft_heads import checkpoint_tensor, pooled_place, stock_head
from trainer.peft_tensors import decoder_slots, prefix_rows

# What transformers calls the layers before ModernBERT's classifier.
MODERNBERT_HEAD: Final = f"{HEAD_PREFIX}head."


def as_stock(
    prompt: Prompt, template: Template, base: Backbone, config: Any, folder: Path
) -> tuple[dict[str, Array] | None, str]:
    """The tensors of PEFT's own head for this prompt, by PEFT's names; or None, and what its classifier does otherwise.

    `folder` is the base model's, and `config` its configuration: what PEFT finds there is left out.
    """
    manifest, head = prompt.manifest, prompt.manifest.head
    count = prompt.num_virtual_tokens
    if manifest.position_offset != count:
        return None, f"PEFT shifts the text's positions by {count}, the prompt by {manifest.position_offset}"
    if isinstance(head, VerbalizerHead):
        if not base.is_causal:
            return None, "PEFT has no task type for masked language models"
        return ({}, "") if manifest.calibration is None else (None, "PEFT has no place for its calibration")
    if isinstance(head, LabelEmbeddingHead):
        return None, "its head compares with label embeddings"
    try:
        stages = stock_head(config, is_causal=base.is_causal)
        suffixes = base.tokenizer.layout.suffix, base.tokenizer.layout.pair_suffix
        place = pooled_place(config, suffixes, is_causal=base.is_causal, is_prefix=not template.num_soft)
    except AdapterError as error:
        return None, str(error)
    pooling = _place(manifest.pooling, template)
    from_pooler = (
        pooling == "pooler"
        and len(stages.stages) == 2
        and stages.stages[0].name.endswith(("pooler", "pooler.dense"))
    )
    if pooling != place and not (from_pooler and place == 0 and not template.num_soft):
        return None, f"PEFT's classifier reads {_spoken(place)}, the prompt reads {_spoken(pooling)}"
    own = list(enumerate(stages.stages))[1 if from_pooler else 0 :]
    if len(own) != len(head.layers):
        return None, f"its head has {len(head.layers)} layers where the classifier has {len(own)}"
    tensors: dict[str, Array] = {}
    for (_, stage), (at, layer) in zip(own, enumerate(head.layers), strict=True):
        norm_eps = float(config.norm_eps) if stage.norm else None
        if layer.activation != stage.activation or layer.norm_eps != norm_eps:
            return None, "its head's layers are not the classifier's"
        if stage is not own[-1][1] and layer.out_features != base.shape.hidden_size:
            return (
                None,
                f"its head narrows to {layer.out_features} where the classifier keeps the model's width",
            )
        parts = {
            f"{name}.{kind}": array.astype(np.float32)
            for part, name in (("", stage.name), ("norm.", stage.norm))
            for kind in ("weight", "bias")
            if (array := prompt.tensors.get(f"head.{at}.{part}{kind}")) is not None
        }
        if not layer.bias and stage.norm is None and not base.is_causal:
            parts[f"{stage.name}.bias"] = np.zeros(
                layer.out_features, np.float32
            )  # the classifier's would be random
        if not (stage.frozen and all(_same(array, folder, config, name) for name, array in parts.items())):
            tensors |= {HEAD_PREFIX + name: array for name, array in parts.items()}
    if any(name.startswith(MODERNBERT_HEAD) for name in tensors) and not _fits_modernbert(tensors, config):
        return None, "its head has a bias, and the classifier's has none"
    if base.is_causal and f"{HEAD_PREFIX}score.bias" in tensors:
        if np.any(tensors[f"{HEAD_PREFIX}score.bias"]):
            return None, "its head has a bias, and a decoder's score layer has none"
        del tensors[f"{HEAD_PREFIX}score.bias"]
    return _calibrated(prompt, tensors, own[-1][1].name, base)


def _fits_modernbert(tensors: dict[str, Array], config: Any) -> bool:
    """Give ModernBERT's own head the biases that its configuration says it has; False if it has no place for one."""
    for part, has_bias in (("dense", config.classifier_bias), ("norm", config.norm_bias)):
        bias = f"{MODERNBERT_HEAD}{part}.bias"
        if has_bias:  # PEFT would leave the base model's there
            tensors.setdefault(bias, np.zeros(len(tensors[f"{MODERNBERT_HEAD}{part}.weight"]), np.float32))
        elif np.any(tensors.pop(bias, 0.0)):
            return False
    return True


def _calibrated(
    prompt: Prompt, tensors: dict[str, Array], last: str, base: Backbone
) -> tuple[dict[str, Array] | None, str]:
    """Work scores = (logits + bias) / temperature into the last layer: PEFT knows no calibration."""
    calibration = prompt.manifest.calibration
    if calibration is None:
        return tensors, ""
    if calibration.bias is not None and base.is_causal:
        return None, "its calibration has a bias, and a decoder's score layer has none"
    weight, bias = f"{HEAD_PREFIX}{last}.weight", f"{HEAD_PREFIX}{last}.bias"
    tensors[weight] = (tensors[weight] / calibration.temperature).astype(np.float32)
    if bias in tensors:
        shift = np.asarray(calibration.bias or 0.0, np.float32)
        tensors[bias] = ((tensors[bias] + shift) / calibration.temperature).astype(np.float32)
    return tensors, ""


def _place(pooling: str | int, template: Template) -> str | int:
    """Where the prompt reads, in PEFT's terms: [CLS] is place 0 where no virtual token stands before it."""
    if pooling == "cls":
        return template.num_leading_soft
    return "last" if pooling == -1 else pooling


def _spoken(place: str | int) -> str:
    names = {
        "last": "the last token", "row": "the mean over the whole row", "mean": "the mean over the text's tokens",
        "pooler": "[CLS], through the model's pooler", 0: "place 0",
    }  # fmt: skip
    return names.get(place, f"place {place}")


def _same(array: Array, folder: Path, config: Any, name: str) -> bool:
    stored = checkpoint_tensor(folder, (name, name.removeprefix(f"{config.model_type}.")))
    # A norm that has no bias in the checkpoint has one of zeros in the file.
    return not np.any(array) if stored is None else np.array_equal(stored, array)


def two_stacks(prompt: Prompt, base: Backbone) -> Array:
    """PEFT's rows of a prompt for an encoder-decoder: doubled vectors, or the layers that its decoder is to have.

    Raises AdapterError: PEFT answers otherwise than this prompt does.
    """
    manifest, shape = prompt.manifest, base.shape
    decoder, count = manifest.decoder, prompt.num_virtual_tokens
    if decoder is None or decoder.reads != "start" or not isinstance(manifest.head, VerbalizerHead):
        raise AdapterError(
            "PEFT's encoder-decoders answer with the decoder's first token, and the prompt reads another state: it "
            "cannot be exported"
        )
    if manifest.calibration is not None:
        raise AdapterError("PEFT has no place for the prompt's calibration: it cannot be exported")
    soft = prompt.tensors.get("soft_prompt")
    if soft is not None:
        if decoder.position_offset:
            raise AdapterError("PEFT does not shift the decoder behind a soft prompt: it cannot be exported")
        # PEFT keeps as many rows for the decoder, and uses none of them.
        return np.concatenate([soft, soft]).astype(np.float32)
    if "prefix.decoder.key" not in prompt.tensors:
        raise AdapterError("PEFT's prefixes reach only the decoder's own attention: it cannot be exported")
    if manifest.position_offset or decoder.position_offset != count:
        raise AdapterError(
            f"PEFT shifts the decoder's positions by {count} and the encoder's by none, and the prompt does not: it "
            "cannot be exported"
        )
    return _in_slots(
        np.stack([prompt.tensors["prefix.decoder.key"], prompt.tensors["prefix.decoder.value"]]), shape.layers
    )


def _in_slots(prefix: Array, encoder_layers: int) -> Array:
    """PEFT's rows which give a decoder the keys and values in `prefix` [2, layers, n, kv_heads, head_dim].

    As many layers are written as PEFT would learn, the encoder's; where two of the decoder's would share one of these,
    an odd number of them, of which each gets its own: 2i modulo an odd number is another place for each i.
    """
    layers = prefix.shape[1]
    for learned in (encoder_layers, layers + 1 - layers % 2):
        slots = decoder_slots(learned, layers)
        rows = np.zeros((2, learned, *prefix.shape[2:]), np.float32)
        rows[:, slots] = prefix
        if layers <= learned and np.array_equal(rows[:, slots], prefix):
            break
    return prefix_rows(rows[0], rows[1])
