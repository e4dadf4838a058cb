"""Owns what stands between the hidden states and the logits in transformers' sequence classifiers, family by family.

PEFT hands its virtual tokens to these heads as they are. Here each is written as layers of a prompt file, taken from
the adapter where PEFT saved them (`modules_to_save`) and from the base model's checkpoint where they stayed frozen.
Knows transformers' names; knows no prompt and no PEFT configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from prompt_store import LinearLayer
from prompt_store.prompt import Array
from trainer.errors import AdapterError
from trainer.peft_format import HEAD_PREFIX, Adapter

Activation = Literal["tanh", "relu", "gelu"]


@dataclass(frozen=True)
class Stage:
    """One layer of a stock head: a Linear by its name in the classifier, what follows it, and who keeps its weights.

    `frozen`: PEFT leaves it as the checkpoint has it. `setting` is the configuration's key for the activation.
    """

    name: str
    activation: Activation | None = None
    frozen: bool = False
    setting: str | None = None
    norm: str | None = None


@dataclass(frozen=True)
class StockHead:
    """A family's head, and whether PEFT can run prefix tuning on that family: the model must take past keys."""

    stages: tuple[Stage, ...]
    takes_prefix: bool = True


_CLASSIFIER = Stage("classifier")
_DENSE_AND_OUT = Stage("classifier.dense", "tanh"), Stage("classifier.out_proj")
_ENCODERS: Mapping[str, StockHead] = {
    "bert": StockHead((Stage("bert.pooler.dense", "tanh", frozen=True), _CLASSIFIER)),
    "roberta": StockHead(_DENSE_AND_OUT),
    "xlm-roberta": StockHead(_DENSE_AND_OUT),
    "camembert": StockHead(_DENSE_AND_OUT),
    "electra": StockHead((Stage("classifier.dense", "gelu"), Stage("classifier.out_proj"))),
    "albert": StockHead((Stage("albert.pooler", "tanh", frozen=True), _CLASSIFIER), takes_prefix=False),
    "distilbert": StockHead((Stage("pre_classifier", "relu"), _CLASSIFIER), takes_prefix=False),
    "deberta-v2": StockHead(
        (Stage("pooler.dense", "gelu", frozen=True, setting="pooler_hidden_act"), _CLASSIFIER),
        takes_prefix=False,
    ),
    "modernbert": StockHead(
        (
            Stage("head.dense", "gelu", frozen=True, setting="classifier_activation", norm="head.norm"),
            _CLASSIFIER,
        ),
        takes_prefix=False,
    ),
}
_DECODER = StockHead((Stage("score"),))
# What PEFT saves of the heads of all families.
_TRAINED = frozenset(
    stage.name for head in (*_ENCODERS.values(), _DECODER) for stage in head.stages if not stage.frozen
)
_NO_SCORE = frozenset({"ctrl", "modernbert-decoder"})  # decoders whose classifier has other layers
# What some families' language models do with the scores behind their head.
_AFTER_LM_HEAD = ("logits_scaling", "logit_scale", "final_logit_softcapping")
_NO_WORD = "\ue000 \U000f0000"  # characters for private use, which no vocabulary knows


@dataclass(frozen=True)
class HeadLayers:
    """A head as a prompt file has it: layers, tensors by the file's names, and PEFT's names of those that were used."""

    layers: tuple[LinearLayer, ...]
    tensors: Mapping[str, Array]
    used: frozenset[str]


def stock_head(config: Any, *, is_causal: bool) -> StockHead:
    """The head of transformers' sequence classifier for a model's configuration. Raises AdapterError if unknown."""
    kind = config.model_type
    if is_causal and kind in _ENCODERS:
        raise AdapterError(
            f"the base model's configuration says is_decoder, so each place of its {kind} sees only what stands before "
            "it; the classifier reads the first, and PEFT's answer is the same for every text: there are none to keep"
        )
    head = _DECODER if is_causal and kind not in _NO_SCORE else _ENCODERS.get(kind)
    if head is None:
        known = ", ".join(sorted(_ENCODERS))
        raise AdapterError(
            f"the head of a sequence classifier on {kind} is not known here: SEQ_CLS is imported for {known}, "
            f"and for decoders whose classifier is one layer named score"
        )
    return replace(head, stages=tuple(_as_configured(stage, config) for stage in head.stages))


def _as_configured(stage: Stage, config: Any) -> Stage:
    if stage.setting is None:
        return stage
    chosen = getattr(config, stage.setting, stage.activation)
    if chosen not in get_args(Activation):
        raise AdapterError(
            f"{config.model_type} with {stage.setting} = {chosen!r} has a head that a prompt file cannot hold: its "
            f"layers end in {', '.join(get_args(Activation))} or nothing"
        )
    return replace(stage, activation=chosen)


def pooled_place(
    config: Any, suffixes: tuple[Sequence[int], Sequence[int]], *, is_causal: bool, is_prefix: bool
) -> Literal["last", "row"] | int:
    """Which place of the row PEFT's classifier reads, virtual tokens included: the manifest's `pooling`.

    `suffixes` are the special tokens behind one text and behind a pair. Behind a prefix transformers' decoders see the
    tokens, and pass over those that are padding in the configuration; of a soft prompt they see vectors, and read the
    last. Raises AdapterError where one text and a pair are read at different places.
    """
    if not is_causal:
        return "row" if getattr(config, "classifier_pooling", None) == "mean" else 0
    pad = config.get_text_config().pad_token_id
    if not is_prefix or pad is None:
        return "last"
    single, pair = (sum(1 for _ in takewhile(lambda i: i == pad, reversed(suffix))) for suffix in suffixes)
    if single != pair:
        raise AdapterError(
            "PEFT's classifier passes over the padding token at the end, which one text and a pair do not share: no "
            "prompt file can say that"
        )
    return -1 - single if single else "last"


def padding_word(config: Any, tokenizer: Any) -> str | None:
    """The token that the configuration calls padding, where plain text may become it: a word, or the unknown one."""
    pad = config.get_text_config().pad_token_id
    if pad is None or not 0 <= pad < len(tokenizer):
        return None
    unknown = tokenizer(_NO_WORD, add_special_tokens=False)["input_ids"]
    is_text = pad not in tokenizer.all_special_ids or pad in unknown
    return str(tokenizer.convert_ids_to_tokens(pad)) if is_text else None


def window_of(config: Any) -> int | None:
    """How far back some layer of a model sees, if not all the way."""
    size = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if size is None or not getattr(config, "use_sliding_window", True):
        return None
    # A configuration may name a window that none of its layers has.
    return int(size) if kinds is None or any(kind != "full_attention" for kind in kinds) else None


def head_layers(head: StockHead, adapter: Adapter, base: Path, config: Any, width: int) -> HeadLayers:
    """The layers of a stock head, from an adapter and its base model's folder; `width` is that of the states it reads.

    Raises:
        AdapterError: the adapter has no trained head or only a part of one, or the base model no weights for what
            stayed frozen.

    """
    layers, tensors, used = [], {}, set()
    for at, stage in enumerate(head.stages):
        for part, name in (("", stage.name), ("norm.", stage.norm)):
            if name is None:
                continue
            saved = _is_saved(name, stage, adapter)
            for kind in ("weight", "bias"):
                key = f"{HEAD_PREFIX}{name}.{kind}"
                array = adapter.tensors.get(key)
                if array is not None:
                    used.add(key)
                elif not saved:
                    # A checkpoint of the bare model leaves the model's own name out.
                    names = (f"{name}.{kind}", f"{name}.{kind}".removeprefix(f"{config.model_type}."))
                    array = checkpoint_tensor(base, names)
                elif f"{HEAD_PREFIX}{stage.name}.weight" in adapter.tensors and _has(
                    stage, part, kind, config
                ):
                    raise AdapterError(
                        f"{adapter.folder} is not whole: it has no {key}, without which PEFT does not load it either: "
                        "copy or download the folder again"
                    )
                if array is not None:
                    tensors[f"head.{at}.{part}{kind}"] = array
        weight = tensors.get(f"head.{at}.weight")
        if weight is None:
            raise AdapterError(_missing(stage, head, adapter.tensors, base, config))
        if weight.ndim != 2 or weight.shape[1] != width:
            raise AdapterError(
                f"the base model does not fit: {stage.name}.weight must be a matrix [outputs, {width}], and its shape "
                f"is {list(weight.shape)}"
            )
        width = weight.shape[0]
        if stage.norm is not None:
            # A norm without a bias shifts by nothing.
            tensors.setdefault(f"head.{at}.norm.bias", np.zeros(weight.shape[0], np.float32))
        layers.append(
            LinearLayer(
                in_features=weight.shape[1],
                out_features=weight.shape[0],
                bias=f"head.{at}.bias" in tensors,
                activation=stage.activation,
                norm_eps=float(config.norm_eps) if stage.norm else None,
            )
        )
    return HeadLayers(tuple(layers), tensors, frozenset(used))


def _is_saved(name: str, stage: Stage, adapter: Adapter) -> bool:
    """Whether PEFT keeps a module's tensors in the adapter, and there alone: what is trained, or was named for it."""
    if not stage.frozen or any(key.startswith(f"{HEAD_PREFIX}{name}.") for key in adapter.tensors):
        return True
    named, parts = adapter.config.get("modules_to_save"), name.split(".")
    if not isinstance(named, list):
        return False
    around = [".".join(parts[: at + 1]) for at in range(len(parts))]
    return any(isinstance(own, str) and module.endswith(own) for own in named for module in around)


def _has(stage: Stage, part: str, kind: str, config: Any) -> bool:
    """Whether transformers' classifier has this tensor of a layer or of its norm."""
    if kind == "weight":
        return True
    if stage.name == "score":
        return False
    if stage.norm is None:
        return True
    return bool(config.norm_bias if part else config.classifier_bias)


def _missing(stage: Stage, head: StockHead, adapter: Mapping[str, Array], base: Path, config: Any) -> str:
    theirs = sorted(_TRAINED & {_layer(key) for key in adapter})
    if theirs and not stage.frozen:
        wanted = [own.name for own in head.stages if not own.frozen]
        lacks = " or the folder is not whole" if set(theirs) < set(wanted) else ""
        return (
            f"the base model does not fit{lacks}: the adapter's head is {', '.join(theirs)}, and the head of a "
            f"{config.model_type} classifier is {', '.join(wanted)}: name the adapter's own base model with --backbone"
        )
    if stage.frozen:
        return (
            f"neither the adapter nor the base model in {base} has weights for {stage.name}: PEFT draws them at random "
            "each time it loads such a model, so the adapter has no answers of its own to keep: train it again"
        )
    return (
        f"the adapter has no weights for {stage.name}: releases of PEFT until July 2025 left the trained head of "
        "such adapters out, and without it its answers cannot be restored: train it again"
    )


def _layer(key: str) -> str:
    return key.removeprefix(HEAD_PREFIX).removesuffix(".weight").removesuffix(".bias")


def word_rows(adapter: Adapter, ids: Sequence[Sequence[int]], config: Any, width: int) -> HeadLayers | None:
    """The label words' rows of a language-model head that the adapter has of its own; None if it has none.

    `ids` are the tokens of each label's words, whose scores are averaged, and `width` is that of the states. Raises
    AdapterError where such a head is not all that stands between states and logits.
    """
    weight, bias = (adapter.tensors.get(f"{HEAD_PREFIX}lm_head.{kind}") for kind in ("weight", "bias"))
    if weight is None:
        return None
    after = [
        key for key in _AFTER_LM_HEAD if getattr(config.get_text_config(), key, None) not in (None, 1, 1.0)
    ]
    if config.is_encoder_decoder or after:
        raise AdapterError(
            f"the adapter has a language-model head of its own, and on {config.model_type} its scores are changed "
            f"again ({', '.join(after) or 'by the width, or a bias for each word'}), which no prompt file can say: "
            "train it again without lm_head in modules_to_save"
        )
    if weight.ndim != 2 or weight.shape[1] != width or weight.shape[0] <= max(i for own in ids for i in own):
        raise AdapterError(
            f"the base model does not fit: lm_head.weight must have a row of {width} for every word, and its shape is "
            f"{list(weight.shape)}"
        )
    kept = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    tensors = {
        f"head.0.{kind}": np.stack([array[list(own)].mean(0, dtype=np.float64) for own in ids]).astype(
            np.float32
        )
        for kind, array in kept.items()
    }
    layer = LinearLayer(in_features=width, out_features=len(ids), bias=bias is not None)
    return HeadLayers((layer,), tensors, frozenset(f"{HEAD_PREFIX}lm_head.{kind}" for kind in kept))


def checkpoint_tensor(folder: Path, names: Sequence[str]) -> Array | None:
    """The first of these tensors that a checkpoint has, as float32; None if it has none. Raises AdapterError."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            with safe_open(folder / "model.safetensors", "pt") as file:
                files = dict.fromkeys(file.keys(), "model.safetensors")
        found = next((name for name in names if name in files), None)
        if found is None:
            return None
        with safe_open(folder / files[found], "pt") as file:
            return np.ascontiguousarray(file.get_tensor(found).float().numpy())
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise AdapterError(f"the base model's weights in {folder} cannot be read: {error}") from None
