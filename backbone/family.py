"""What differs between model families, read off the stock model.

Owns the questions that have one answer for each family: where positions start, whether attention is causal, whether it
can be replaced, and which families cannot be run at all. Knows nothing of rows or prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from backbone.errors import UnsupportedBackbone
from prompt_store import BackboneRef, IncompatiblePrompt, Manifest, StackRef

_T5 = ("t5", "mt5")
ENCODER_DECODERS = (*_T5, "bart", "mbart")
_T5_POSITIONS, _LONGEST_RELATIVE = 512, 4096


def bare_manifest(shape: BackboneRef, *, max_tokens: int) -> Manifest:
    """The manifest of no prompt at all: the text alone, averaged. Its head is a placeholder."""
    return Manifest.model_validate({
        "task_id": "bare", "labels": ("a", "b"), "method": "hard-prompt", "backbone": shape, "template": "{text}",
        "pooling": "mean", "position_offset": 0, "max_length": {"tokens": max_tokens},
        "head": {"type": "label_embeddings", "descriptions": ("a", "b"), "scale": 1.0},
    })  # fmt: skip


def refuse_unfit(model: Any) -> None:
    """Refuse what can be seen from the outside to run neither packed nor in padded batches.

    Raises:
        UnsupportedBackbone: with the reason.

    """
    config, family = model.config, model.config.model_type
    if is_encoder_decoder(config):
        if family not in ENCODER_DECODERS:
            known = ", ".join(ENCODER_DECODERS)
            raise UnsupportedBackbone(
                f"{family} is an encoder-decoder that is not known here: of these, {known} can be served"
            )
        if family in _T5 and model.dtype is torch.float16:
            raise UnsupportedBackbone(f"{family} overflows in float16: use --dtype bfloat16 or float32")
        return
    if (kind := _rope_that_adapts(config)) is not None:
        raise UnsupportedBackbone(
            f"{family} with {kind} rotary positions turns all rows of a batch by the length of its longest: a row's "
            "answer would depend on its neighbours"
        )
    if getattr(config, "attention_type", None) == "block_sparse":
        raise UnsupportedBackbone(
            f"{family} attends to all of a short row and to parts of a long one: a row's answer would depend on its "
            'neighbours (where "attention_type" in its config.json is "original_full", it can be served)'
        )
    accepts = inspect.signature(model.base_model.forward).parameters
    if "position_ids" not in accepts:
        raise UnsupportedBackbone(
            f"{family} takes no position ids, without which a prompt cannot say where its text stands"
        )
    _refuse_without(config, "num_hidden_layers", "max_position_embeddings")
    if (inner := getattr(config, "inner_group_num", 1)) != 1:
        raise UnsupportedBackbone(
            f"{family} with inner_group_num = {inner} attends {inner} times in each of its layers, "
            "and a prefix has one place in each: only 1 is served"
        )
    head_dim(config)
    if attends_by_interface(model):
        return
    if is_causal(model.base_model) or is_decoder(config):
        raise UnsupportedBackbone(
            f"{family} is a decoder that attends in its own way: only decoders whose attention transformers can "
            "replace are served (GPT-2, OPT, Llama, Mistral, Qwen and others)"
        )
    if missing := sorted({"inputs_embeds", "attention_mask"} - set(accepts)):
        raise UnsupportedBackbone(
            f"{family} attends in its own way and takes no {' and no '.join(missing)}: its rows cannot be padded"
        )


def attends_by_interface(model: Any) -> bool:
    """Whether transformers can replace this family's attention: what `set_attn_implementation` goes by."""
    return bool(model._can_set_attn_implementation())


def is_decoder(config: Any) -> bool:
    """Whether this is a family of causal language models and of no other, or is set up as one."""
    from transformers.models.auto import modeling_auto as auto

    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    family = config.model_type
    return bool(getattr(config, "is_decoder", False)) or (family in causal and family not in masked)


def without_prefixes(name: str, family: str) -> str:
    """What to say to a prefix that comes to a model which attends in its own way."""
    return f"{name} takes no prefix, as {family} attends in its own way: train a soft prompt (prompt-tuning)"


def refuse_prefixes(tensors: Iterable[str], name: str, family: str) -> None:
    """Refuse tensors of a prefix. Raises IncompatiblePrompt."""
    if any(tensor.startswith("prefix.") for tensor in tensors):
        raise IncompatiblePrompt(without_prefixes(name, family))


def is_encoder_decoder(config: Any) -> bool:
    """Whether it has two stacks, of which the second looks at the first."""
    return bool(getattr(config, "is_encoder_decoder", False))


def shape_of(model: Any, name: str, fingerprint: str) -> BackboneRef:
    """The shapes that prompts for this model must have."""
    config, heads = model.config, model.config.num_attention_heads
    decoder = None
    if is_encoder_decoder(config):
        own = getattr(config, "decoder_attention_heads", None) or heads
        width = head_dim(config) if config.model_type in _T5 else config.hidden_size // own
        count = getattr(config, "num_decoder_layers", None) or config.decoder_layers
        decoder = StackRef(layers=count, kv_heads=own, head_dim=width)
    return BackboneRef(
        name=name,
        fingerprint=fingerprint,
        embedding_width=model.get_input_embeddings().embedding_dim,
        # OPT may project its last states back to the embedding's width: heads see that width.
        hidden_size=getattr(config, "word_embed_proj_dim", None) or config.hidden_size,
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim(config),
        decoder=decoder,
    )


def most_positions(config: Any) -> int:
    """How many tokens a row may have. T5 has no table of positions: it is taken at the length it was trained at."""
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(length or _T5_POSITIONS)


def longest_row(config: Any, positions: int) -> int:
    """How many tokens a prompt may ask for: a model's `positions`, and more of T5 and mT5, where no table ends.

    Bounded all the same, as a row's relative bias has heads · length² numbers.
    """
    return max(positions, _LONGEST_RELATIVE) if config.model_type in _T5 else positions


def position_base(base: Any) -> int:
    """The first position of a text: RoBERTa and its kin begin after the padding index."""
    embeddings: Any = getattr(base, "embeddings", None)
    # MPNet has only the second of the two methods.
    marks = ("create_position_ids_from_input_ids", "create_position_ids_from_inputs_embeds")
    if embeddings is not None and any(hasattr(embeddings, mark) for mark in marks):
        return int(embeddings.padding_idx) + 1
    return 0


def is_causal(base: Any) -> bool:
    """Whether its attention looks back only: a decoder. An encoder-decoder reads its rows both ways."""
    return not is_encoder_decoder(base.config) and any(
        getattr(module, "is_causal", False) for module in base.modules()
    )


def has_window(config: Any) -> bool:
    """Whether some layer sees only so far back: a text would lose sight of soft tokens, but never of a prefix."""
    names = ("sliding_window", "attention_chunk_size")
    # Left in the file of a family without windows, it does nothing.
    size = next((v for n in names if hasattr(type(config), n) and (v := getattr(config, n))), None)
    kinds = getattr(config, "layer_types", None)
    if size is None or not getattr(config, "use_sliding_window", True):
        return False
    return kinds is None or any(kind != "full_attention" for kind in kinds)


def head_dim(config: Any) -> int:
    """The width of one attention head. Raises UnsupportedBackbone if the model has none."""
    _refuse_without(config, "hidden_size", "num_attention_heads")
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _refuse_without(config: Any, *settings: str) -> None:
    for setting in settings:
        if getattr(config, setting, None) is None:
            raise UnsupportedBackbone(
                f"{config.model_type} has no {setting} in its configuration: only transformers with attention and a "
                "longest text are served"
            )


def _rope_that_adapts(config: Any) -> str | None:
    """The kind of rotary positions whose frequencies depend on the batch, if these are such."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Some families have one set for each type of layer.
    sets = [given, *(part for part in given.values() if isinstance(part, dict))]
    kinds = [part.get("rope_type", part.get("type")) for part in sets]
    return next((kind for kind in kinds if kind in ("dynamic", "longrope")), None)
