"""What differs between model families, read off the stock model.

Owns the questions that have one answer for each family: where positions start, whether attention is causal, and
which families cannot run packed rows at all. Knows nothing of rows or prompts.
"""

from __future__ import annotations

import inspect
from typing import Any

from backbone.errors import UnsupportedBackbone
from prompt_store import BackboneRef, Manifest


def bare_manifest(shape: BackboneRef, *, max_tokens: int) -> Manifest:
    """The manifest of no prompt at all: the text alone, averaged. Its head is a placeholder."""
    return Manifest.model_validate({
        "task_id": "bare", "labels": ("a", "b"), "method": "hard-prompt", "backbone": shape, "template": "{text}",
        "pooling": "mean", "position_offset": 0, "max_length": {"tokens": max_tokens},
        "head": {"type": "label_embeddings", "descriptions": ("a", "b"), "scale": 1.0},
    })  # fmt: skip


def refuse_unfit(model: Any) -> None:
    """Refuse what can be seen from the outside not to run packed.

    Raises:
        UnsupportedBackbone: with the reason.

    """
    config, family = model.config, model.config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedBackbone(f"{family} is an encoder-decoder: only encoders and decoders can be served")
    if (kind := _rope_that_adapts(config)) is not None:
        raise UnsupportedBackbone(
            f"{family} with {kind} rotary positions turns all rows of a batch by the length of its longest: a row's "
            "answer would depend on its neighbours"
        )
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise UnsupportedBackbone(f"{family} takes no position ids, which rows packed in one line need")


def position_base(base: Any) -> int:
    """The first position of a text: RoBERTa and its kin begin after the padding index."""
    embeddings = getattr(base, "embeddings", None)
    if embeddings is not None and hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1
    return 0


def is_causal(base: Any) -> bool:
    """Whether its attention looks back only: a decoder."""
    return any(getattr(module, "is_causal", False) for module in base.modules())


def head_dim(config: Any) -> int:
    """The width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope_that_adapts(config: Any) -> str | None:
    """The kind of rotary positions whose frequencies depend on the batch, if these are such."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Some families have one set for each type of layer.
    sets = [given, *(part for part in given.values() if isinstance(part, dict))]
    kinds = [part.get("rope_type", part.get("type")) for part in sets]
    return next((kind for kind in kinds if kind in ("dynamic", "longrope")), None)
