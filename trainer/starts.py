"""Owns what a run's training starts from: prompt and head, from words, from the linear probe, or from another prompt.

Starts are deterministic in the seed. Knows no optimiser and no order of things.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from backbone import Backbone, BackboneError
from prompt_store import (
    InvalidPrompt,
    LabelEmbeddingHead,
    LinearHead,
    Manifest,
    PromptStoreError,
    encode_prompt,
    parse_template,
)
from prompt_store.codec import MAX_BYTES
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.head_only import LinearProbe, random_head
from trainer.init import Initialiser
from trainer.label_texts import label_texts
from trainer.methods import group_of, kind_of, trains_prompt
from trainer.parameterisation import Parameterisation
from trainer.prompt_file import stored
from trainer.transfer import Source, read_source


def untrained(config: TrainConfig, backbone: Backbone) -> dict[str, Tensor]:
    """The tensors of a head that needs no training: label embeddings, or none for a verbalizer."""
    if config.head.type != "label_embeddings":
        return {}
    vectors = backbone.encode_labels(label_texts(config))
    return {"verbalizer.label_embeddings": torch.from_numpy(vectors)}


def check_start(config: TrainConfig, manifest: Manifest, backbone: Backbone) -> Source | None:
    """Refuse what the backbone cannot run, nothing can start from, or no file can hold, before anything is computed
    or written; returns the prompt that is started from, if there is one.

    `config` is resolved, `manifest` its own. Raises ConfigError.
    """
    where, source = config.prompt.init_from, None
    if trains_prompt(config.method):
        label_texts(config)
        source = None if where is None else read_source(where, config.prompt.init_version)
        if config.head.start == "source":
            _check_head_of(source, config, manifest)
    start = {} if source is None else source.tensors()
    wanted = set(backbone.prefix_stacks(decoder=manifest.decoder is not None))
    stacks = {name.split(".")[1] for name in start if name.startswith("prefix.")}
    if stacks and stacks != wanted:
        raise ConfigError(
            f"prompt.init_from: that prompt has a prefix for {_listed(stacks)}, and this run's is for "
            f"{_listed(wanted)}: choose prompt.decoder as it was there (left out, where no decoder was "
            "read), or another prompt"
        )
    try:
        backbone.row_encoder(manifest)
        backbone.bind(manifest, start | zero_head(manifest))
        _check_size(config, manifest, backbone)
    except (BackboneError, PromptStoreError) as error:
        raise ConfigError(
            f"the prompt that this configuration describes cannot be trained: {error}"
        ) from None
    return source


def _check_size(config: TrainConfig, manifest: Manifest, backbone: Backbone) -> None:
    """Raises InvalidPrompt where the file would be too large: known before the training, not after it."""
    count, tensors = config.prompt.num_virtual_tokens or 0, zero_head(manifest)
    if kind_of(config.method) == "soft":
        tensors["soft_prompt"] = torch.zeros(count, manifest.backbone.embedding_width)
    elif kind_of(config.method) == "prefix":
        for stack in backbone.prefix_stacks(decoder=manifest.decoder is not None):
            shape = manifest.backbone.stack(stack)
            values = torch.zeros(shape.layers, count, shape.kv_heads, shape.head_dim)
            tensors |= {f"prefix.{stack}.key": values, f"prefix.{stack}.value": values}
    data = encode_prompt(manifest, {name: stored(name, tensor) for name, tensor in tensors.items()})
    if config.ensemble and len(data) * len(config.seeds) > MAX_BYTES:
        raise InvalidPrompt(
            f"ensemble: {len(config.seeds)} prompts of {len(data)} bytes, and a file has at most {MAX_BYTES}"
        )


def zero_head(manifest: Manifest) -> dict[str, Tensor]:
    """A head of zeros, named as in the prompt file, where any will do."""
    head, labels = manifest.head, len(manifest.labels)
    if isinstance(head, LinearHead):
        tensors = {}
        for at, layer in enumerate(head.layers):
            tensors[f"head.{at}.weight"] = torch.zeros(layer.out_features, layer.in_features)
            tensors[f"head.{at}.bias"] = torch.zeros(layer.out_features)
        return tensors
    if isinstance(head, LabelEmbeddingHead):
        return {"verbalizer.label_embeddings": torch.zeros(labels, manifest.backbone.hidden_size)}
    return {}


def _listed(stacks: set[str]) -> str:
    return " and ".join(sorted(stacks))


class Starts:
    """The starting tensors of a resolved configuration."""

    def __init__(
        self,
        config: TrainConfig,
        backbone: Backbone,
        initialiser: Initialiser,
        probe: LinearProbe,
        source: Source | None,
    ) -> None:
        """`probe` is the head-only reference, `source` the prompt that `check_start` has found."""
        self._config, self._backbone, self._initialiser = config, backbone, initialiser
        self._probe, self._source = probe, source

    def head(self, seed: int) -> dict[str, Tensor]:
        """The head's tensors, named as in the prompt file."""
        start = self._config.head.start
        if start == "source":
            return self._head_of_source()
        if self._config.head.type != "linear":
            return untrained(self._config, self._backbone)
        head = self._probe.tensors()
        return random_head(head, seed) if start == "random" else head

    def prompt(self, seed: int) -> dict[str, Tensor]:
        """Soft prompt or prefix, named as in the prompt file."""
        prompt = self._config.prompt
        if self._source is not None:
            return self._source.tensors()
        if kind_of(self._config.method) == "soft":
            template = parse_template(prompt.template or "")
            return {"soft_prompt": self._initialiser.soft_prompt(template, prompt.init or (), seed)}
        start: dict[str, Tensor] = {}
        for stack in self._backbone.prefix_stacks(decoder=prompt.decoder is not None):
            sources, count = prompt.init or (), prompt.num_virtual_tokens or 1
            keys, values = self._initialiser.prefix(sources, count, seed, stack=stack)
            start |= {f"prefix.{stack}.key": keys, f"prefix.{stack}.value": values}
        return start

    def raw(self, seed: int, parameterisation: Parameterisation) -> dict[str, Tensor]:
        """What is trained.

        From a run folder that trained the same tensors, it is these, bit for bit: what was learned goes on where it
        stood, and does not come back from half precision or through a network that was fitted anew.
        """
        raw = parameterisation.start(self.prompt(seed) | self.head(seed), seed)
        learned: Mapping[str, Tensor] = {} if self._source is None else self._source.learned
        own = {name: tensor for name, tensor in learned.items() if group_of(name) == "prompt"}
        wanted = {name: tensor.shape for name, tensor in raw.items() if group_of(name) == "prompt"}
        return raw | own if {name: tensor.shape for name, tensor in own.items()} == wanted else raw

    def _head_of_source(self) -> dict[str, Tensor]:
        assert self._source is not None, "checked by `check_start`"
        return self._source.head()


def _check_head_of(source: Source | None, config: TrainConfig, manifest: Manifest) -> None:
    if source is None:
        raise ConfigError(
            'head.start = "source" goes on from the head of prompt.init_from: name a prompt there'
        )
    theirs = source.prompt.manifest
    if theirs.labels != config.labels or theirs.head.type != config.head.type:
        raise ConfigError(
            f'head.start = "source": the prompt of {theirs.task_id!r} has a {theirs.head.type} head for other '
            "labels, or in another order, than this run; leave head.start out"
        )
    if isinstance(theirs.head, LinearHead) and theirs.head != manifest.head:
        raise ConfigError(
            f'head.start = "source": the head of {theirs.task_id!r} has other layers than the one that is trained '
            "here; leave head.start out"
        )
