"""What a checkpoint's files must be for the model in them to be the one that fingerprint and `config.json` name.

Owns the refusals before and after the weights are read: files that would lead to other weights, weights that the model
does not use or has no place for, and a tokenizer that knows words without an embedding. Knows no rows and no prompts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from backbone.errors import BackboneError, UnsupportedBackbone
from backbone.tokenizer import TextTokenizer

_log = logging.getLogger(__name__)

# Weights without which it is another model: relative positions that transformers dropped, adapters not merged.
_ACTING = re.compile(r"distance_embedding|lora_|ia3_l|\.(base_layer|adapters?)\.")
# Buffers of old files, which are computed.
_COMPUTED = re.compile(r"inv_freq$|masked_bias$|\.(attn|attention)\.bias$|position_ids$")
# Case, accents, ligatures, other scripts, quotation marks, white space: what tokenizers are set up to see or not.
_TEXTS = ("Ab ÀÉ ﬁ 中文 x", " a  b ", "a\nb\tc", "’“don't”…", "ÅNGSTRÖM ½ e\u0301")


def refuse_folder(folder: Path, config: Any) -> None:
    """Refuse a folder from which transformers would load other weights than those in it, or none that can be trained.

    Raises:
        UnsupportedBackbone: with the reason.

    """
    if (folder / "adapter_config.json").exists():
        raise UnsupportedBackbone(
            f"{folder} holds an adapter beside a model (adapter_config.json): where PEFT is installed, the adapter's "
            "own base model would be loaded in its place; merge it (PEFT's merge_and_unload), or move it away"
        )
    if quantised := getattr(config, "quantization_config", None):
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise UnsupportedBackbone(
            f"the backbone in {folder} is stored quantised ({kind}): take the model that it was made from"
        )
    if str(getattr(config, "position_embedding_type", "absolute")).startswith("relative_key"):
        raise UnsupportedBackbone(
            f"the backbone in {folder} has position_embedding_type = {config.position_embedding_type!r}, which "
            "transformers no longer computes: it would run as another model"
        )


def refuse_weights(folder: Path, model: Any, report: Mapping[str, Any]) -> None:
    """Refuse weights that are missing, of another shape, or that would act and are not used; tell of layers left out.

    `report` is transformers' own of the loading.

    Raises:
        BackboneError: with the names.

    """
    if shapes := sorted(report["mismatched_keys"]):
        name, stored, wanted = shapes[0]
        raise BackboneError(
            f"the backbone in {folder} has weights of other shapes than its config.json says: {name} is "
            f"{list(stored)}, not {list(wanted)} ({len(shapes)} in all)"
        )
    # BART's bias of the vocabulary is zero where a checkpoint leaves it out; a pooler that is missing is not used.
    missing = sorted(k for k in report["missing_keys"] if "pooler" not in k and k != "final_logits_bias")
    if missing:
        raise BackboneError(
            f"the backbone in {folder} lacks weights: {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    unused = sorted(k for k in report["unexpected_keys"] if not _COMPUTED.search(k))
    if acting := [name for name in unused if _ACTING.search(name)]:
        raise UnsupportedBackbone(
            f"the backbone in {folder} has weights that its model would need and transformers does not use: "
            f"{', '.join(acting[:3])} ({len(acting)} in all): merge adapters into the model first"
        )
    if layers := _of_layers(unused, model.state_dict()):
        _log.warning(
            "the backbone in %s runs without %d of its weights (%s): its config.json asks for fewer layers, or for "
            "layers without them",
            folder,
            len(layers),
            ", ".join(layers[:3]),
        )


def tell_of_another_tokenizer(folder: Path, pretrained: Any) -> None:
    """Log where transformers makes another tokenizer than tokenizer.json's: the fingerprint knows that one alone."""
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core = Tokenizer.from_str(pretrained.backend_tokenizer.to_str())
    for tokenizer in (alone, core):  # a training run's padding and truncation are nothing to a row
        tokenizer.no_padding()
        tokenizer.no_truncation()
    for text in _TEXTS:
        if (
            alone.encode(text, add_special_tokens=False).ids
            != core.encode(text, add_special_tokens=False).ids
        ):
            _log.warning(
                "the tokenizer in %s reads %r otherwise than its tokenizer.json alone would, by its "
                "tokenizer_config.json or a default of transformers: copies of this backbone with one fingerprint may "
                "answer differently. To mend it, save it with AutoTokenizer's save_pretrained",
                folder,
                text,
            )
            return


def refuse_words_without_embedding(folder: Path, tokenizer: TextTokenizer, embeddings: int) -> None:
    """Refuse a tokenizer whose words have ids that the model has no embedding for: each would fail, and on a GPU for
    good.

    Raises:
        BackboneError: with the first of them.

    """
    if beyond := tokenizer.beyond(embeddings):
        raise BackboneError(
            f"the tokenizer in {folder} has {len(beyond)} tokens that the model has no embedding for (the first is id "
            f"{beyond[0]}, and there are {embeddings}): tokenizer.json belongs to another model, or this one was saved "
            "before resize_token_embeddings"
        )


def _of_layers(unused: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those that stand where the model has its layers. A checkpoint's names may begin with one part more, or less."""
    own = {place for name in known if (place := _layers(name))}
    return [
        name
        for name in unused
        if (place := _layers(name)) and any(place.endswith(one) or one.endswith(place) for one in own)
    ]


def _layers(name: str) -> str:
    """What a weight's name says before the number of its layer; "" where it has none."""
    before, number, _ = (
        re.split(r"\.(\d+)\.", name, maxsplit=1) if re.search(r"\.\d+\.", name) else ("", "", "")
    )
    return f".{before}" if number else ""
