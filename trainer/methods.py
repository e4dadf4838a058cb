"""Owns what distinguishes the methods: defaults, and which learning rate each tensor has.

    prompt-tuning   soft prompt at the embedding layer + head            Lester et al. 2021, arXiv 2104.08691
    p-tuning        soft tokens around the text, made by an encoder      Liu et al. 2021, arXiv 2103.10385
    prefix-tuning   keys and values in every layer, made by a network    Li & Liang 2021, arXiv 2101.00190
    p-tuning-v2     keys and values in every layer + head                Liu et al. 2022, arXiv 2110.07602
    head-only       a linear head on frozen features
    hard-prompt     nothing: label embeddings or a verbalizer, zero-shot

Knows the names of a prompt file's tensors; knows nothing of optimisers, data files or manifests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from backbone import Backbone
from prompt_store import Template
from trainer.config import (
    HeadConfig,
    Initialisation,
    MethodName,
    OptimiserConfig,
    PromptConfig,
    Reparameterisation,
    TrainConfig,
)
from trainer.data import TaskData
from trainer.errors import ConfigError
from trainer.parameterisation import Parameterisation, Plain
from trainer.reparameterised import PrefixProjection, PromptEncoder, Residual
from trainer.templates import around_texts, in_front, with_counts, written_template
from trainer.transfer import Kind, Source, check_source, read_source

Group = Literal["prompt", "head"]


@dataclass(frozen=True)
class Defaults:
    """A method's settings where the configuration names none; how they were chosen is in docs/methods/README.md.

    `networks` are what the prompt may be trained through, with its learning rate then; the first is the default.
    """

    kind: Kind
    num_virtual_tokens: int
    init: tuple[Initialisation, ...]
    epochs: int
    batch_size: int
    networks: Mapping[Reparameterisation, float]
    head_lr: float
    averaging: float
    word_dropout: float


_WORDS: tuple[Initialisation, ...] = ("text", "labels", "vocabulary")
DEFAULTS: Mapping[MethodName, Defaults] = {
    "prompt-tuning": Defaults("soft", 40, _WORDS, 3, 32, {"none": 3e-2, "residual": 1e-2}, 2e-3, 0.99, 0.0),
    "p-tuning": Defaults(
        "soft", 40, _WORDS, 3, 32, {"lstm": 1e-3, "mlp": 1e-3, "none": 3e-2}, 2e-3, 0.99, 0.1
    ),
    "prefix-tuning": Defaults("prefix", 40, _WORDS, 4, 32, {"mlp": 1e-3, "none": 2e-2}, 2e-3, 0.99, 0.1),
    "p-tuning-v2": Defaults("prefix", 40, _WORDS, 4, 32, {"none": 2e-2, "mlp": 1e-3}, 2e-3, 0.99, 0.0),
}
PREFIX_HIDDEN = 512
# A small training set is gone through more often than `epochs` says, until this many steps are made.
MIN_STEPS = 300


def trains_prompt(method: MethodName) -> bool:
    """Whether the method learns a soft prompt or a prefix, step by step."""
    return method in DEFAULTS


def kind_of(method: MethodName) -> Kind | None:
    """What the method learns: "soft", a soft prompt; "prefix", keys and values; None: nothing but a head."""
    return DEFAULTS[method].kind if method in DEFAULTS else None


def resolve(config: TrainConfig, data: TaskData, backbone: Backbone) -> TrainConfig:
    """Fill every setting that is still None, so that what is recorded is what ran. Raises ConfigError."""
    prompt, head = config.prompt, config.head
    if kind_of(config.method) == "prefix" and not backbone.takes_prefixes:
        raise ConfigError(
            f"method: {backbone.name} attends in its own way and takes no prefix, so not {config.method!r}: use "
            '"prompt-tuning" or "p-tuning"'
        )
    head_type = head.type or _head_type(config)
    if head_type == "verbalizer" and not backbone.has_lm_head:
        raise ConfigError(f"head.words: {backbone.name} has no language-model head; leave head.words out")
    defaults, source = DEFAULTS.get(config.method), _source(config, backbone)
    if source is not None and head.start == "source":
        prompt = _as_in(source, prompt)
        config = config.model_copy(update={"prompt": prompt})
    if kind_of(config.method) == "prefix" and prompt.init and "random" in prompt.init and prompt.init[1:]:
        raise ConfigError(
            'prompt.init: a prefix is random as a whole, or starts from words: leave "random" or the others out'
        )
    count = prompt.num_virtual_tokens
    if count is None and defaults is not None:
        count = source.prompt.num_virtual_tokens if source else defaults.num_virtual_tokens
    template = _template(config, data, count, head_type)
    if kind_of(config.method) == "soft":
        count = with_counts(template, backbone).num_soft
        if prompt.num_virtual_tokens not in (None, count):
            raise ConfigError(
                f"prompt.num_virtual_tokens: {prompt.num_virtual_tokens}, but the template's slots have {count}: "
                f"leave it out, make it {count}, or change the template"
            )
    decoder = prompt.decoder or (backbone.cloze_reading if head_type == "verbalizer" else None)
    if decoder is not None and backbone.cloze_reading is None:
        raise ConfigError(f"prompt.decoder: {backbone.name} is no encoder-decoder; leave it out")
    if source and count != source.prompt.num_virtual_tokens:
        raise ConfigError(
            f"prompt.init_from: that prompt has {source.prompt.num_virtual_tokens} virtual tokens and this one "
            f"{count}: leave prompt.num_virtual_tokens and prompt.template out, or make them the same"
        )
    network = _network(config)
    pooling = prompt.pooling if prompt.pooling is not None else _pooling(head_type, decoder, backbone)
    update: dict[str, object] = {
        "labels": data.labels,
        "prompt": prompt.model_copy(
            update={
                "template": str(template),
                "num_virtual_tokens": count,
                "init": prompt.init or (defaults.init if defaults else None),
                "init_version": source.version if source else None,
                "reparameterisation": network,
                "encoder_hidden_size": _hidden(config, network, backbone),
                "pooling": pooling,
                "decoder": decoder,
            }
        ),
        "head": head.model_copy(update={"type": head_type}),
    }
    if defaults is not None:
        assert network is not None, "a method that trains a prompt has networks"
        update["optimiser"] = _optimiser(config.optimiser, defaults, network, len(data.train))
    return config.model_copy(update=update)


def _source(config: TrainConfig, backbone: Backbone) -> Source | None:
    """The prompt to start from, checked, if there is one."""
    if config.prompt.init_from is None:
        return None
    kind = kind_of(config.method)
    if kind is None:
        raise ConfigError(f'prompt.init_from: method = "{config.method}" trains no prompt; leave it out')
    source = read_source(config.prompt.init_from, config.prompt.init_version)
    check_source(source, kind, backbone)
    return source


def _as_in(source: Source, prompt: PromptConfig) -> PromptConfig:
    """What stands around the text and what the head reads, from the prompt whose head goes on, where nothing is said.

    Raises ConfigError: that head reads what no prompt that is trained here can read.
    """
    manifest = source.prompt.manifest
    if prompt.pooling is None and manifest.pooling == "row":
        raise ConfigError(
            f'head.start = "source": the head of {manifest.task_id!r} reads the mean over virtual tokens and text, '
            'which no training here does: leave head.start out, or choose prompt.pooling = "mean"'
        )
    same = {
        "template": manifest.template,
        "pooling": manifest.pooling,
        "decoder": None if manifest.decoder is None else manifest.decoder.reads,
    }
    return prompt.model_copy(
        update={name: value for name, value in same.items() if getattr(prompt, name) is None}
    )


def head_only(config: TrainConfig) -> TrainConfig:
    """What `--method head-only` would be for these texts: no template, and nothing that was chosen for a prompt."""
    prompt = config.prompt
    kept = PromptConfig(
        max_tokens=prompt.max_tokens, max_length_counts=prompt.max_length_counts, cut=prompt.cut
    )
    return config.model_copy(update={"method": "head-only", "prompt": kept, "head": HeadConfig()})


def _network(config: TrainConfig) -> Reparameterisation | None:
    given, defaults = config.prompt.reparameterisation, DEFAULTS.get(config.method)
    if defaults is None:
        if given not in (None, "none"):
            raise ConfigError(
                f'prompt.reparameterisation: method = "{config.method}" trains no prompt; leave it out'
            )
        return None
    if given is not None and given not in defaults.networks:
        known = " or ".join(f'"{name}"' for name in defaults.networks)
        raise ConfigError(
            f'prompt.reparameterisation: method = "{config.method}" takes {known}, not "{given}"'
        )
    return given or next(iter(defaults.networks))


def _hidden(config: TrainConfig, network: Reparameterisation | None, backbone: Backbone) -> int | None:
    given, width = config.prompt.encoder_hidden_size, backbone.shape.embedding_width
    if network in (None, "none"):
        if given is not None:
            raise ConfigError(
                "prompt.encoder_hidden_size: nothing is trained through a network here; leave it out"
            )
        return None
    if kind_of(config.method) == "prefix":
        return given or PREFIX_HIDDEN
    # Both directions of the LSTM together are as wide as the embedding, as in P-Tuning's code.
    return given or (max(1, width // 2) if network == "lstm" else width)


def parameterisation_of(config: TrainConfig, backbone: Backbone) -> Parameterisation:
    """What a resolved configuration trains, and how it becomes the prompt file's tensors."""
    network, hidden = config.prompt.reparameterisation, config.prompt.encoder_hidden_size
    if network is None or network == "none":
        return Plain()
    assert hidden is not None, "settings are resolved before training"
    if kind_of(config.method) == "prefix":
        decoder = backbone.shape.decoder
        return PrefixProjection(
            hidden, backbone.shape.kv_heads, None if decoder is None else decoder.kv_heads
        )
    return Residual(hidden) if network == "residual" else PromptEncoder(network, hidden)


def _template(config: TrainConfig, data: TaskData, count: int | None, head_type: str) -> Template:
    kind, cloze = kind_of(config.method), config.method == "p-tuning" and head_type == "verbalizer"
    template = written_template(config.prompt.template, pair=data.has_pairs, mask=cloze)
    if template.soft_slots and kind != "soft":
        soft = " or ".join(f'"{method}"' for method, its in DEFAULTS.items() if its.kind == "soft")
        raise ConfigError(
            f"prompt.template: soft slots are trained by method = {soft}, not {config.method!r}"
        )
    if head_type == "verbalizer" and not template.has_mask:
        raise ConfigError(
            f"prompt.template: label words are read at {{mask}}, and {str(template)!r} has none: put one in, such as "
            '"{text} It was {mask}"'
        )
    if template.soft_slots or kind != "soft" or count is None:
        return template
    return around_texts(template, count) if config.method == "p-tuning" else in_front(template, count)


def _head_type(config: TrainConfig) -> Literal["linear", "verbalizer", "label_embeddings"]:
    if config.head.words is not None and config.method != "head-only":
        return "verbalizer"
    return "label_embeddings" if config.method == "hard-prompt" else "linear"


def _pooling(head_type: str, decoder: str | None, backbone: Backbone) -> Literal["mask", "last", "mean"]:
    if head_type == "verbalizer":
        return "mask"
    if head_type == "label_embeddings" and decoder is None:
        return "mean"  # as `Backbone.encode_labels` makes the vectors that texts are compared with
    return "last" if backbone.is_causal or decoder is not None else "mean"


def _optimiser(
    given: OptimiserConfig, defaults: Defaults, network: Reparameterisation, examples: int
) -> OptimiserConfig:
    batch_size = given.batch_size or defaults.batch_size
    epochs = given.epochs or max(defaults.epochs, math.ceil(MIN_STEPS / math.ceil(examples / batch_size)))
    averaging = defaults.averaging if given.averaging is None else given.averaging
    return given.model_copy(
        update={
            "batch_size": batch_size,
            "epochs": epochs,
            "prompt_lr": given.prompt_lr or defaults.networks[network],
            "head_lr": defaults.head_lr if given.head_lr is None else given.head_lr,
            "averaging": averaging,
            "word_dropout": defaults.word_dropout if given.word_dropout is None else given.word_dropout,
        }
    )


def group_of(tensor_name: str) -> Group:
    """Which learning rate a tensor has: the head's (`head.*`, `verbalizer.*`, also of one task of several) or the
    prompt's (all others).
    """
    own = re.sub(r"^task\.[0-9]+\.", "", tensor_name)
    return "head" if own.startswith(("head.", "verbalizer.")) else "prompt"
