"""Owns what the references start from: bare rows with a linear probe, a hard template, or a trained prompt file.

A fixed prompt with a tuned model is PET's and LM-BFF's way (Schick & Schütze 2021, arXiv 2001.07676; Gao et al. 2021,
arXiv 2012.15723): the template asks, the language model's own words for the labels answer, and all weights learn to.
Knows no training loop and writes nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from backbone import Backbone
from prompt_store import (
    IncompatiblePrompt,
    InvalidTemplate,
    Literal,
    MaskSlot,
    PairSlot,
    Prompt,
    PromptStoreError,
    Template,
    TextSlot,
    decode_prompt,
    parse_template,
    version_of,
)
from trainer.config import TrainConfig
from trainer.data import TaskData
from trainer.errors import ConfigError
from trainer.evaluation import encode, features
from trainer.fine_tuning import Start
from trainer.head_only import LinearProbe, fit_probe
from trainer.label_texts import label_texts
from trainer.manifests import build_manifest
from trainer.methods import resolve
from trainer.templates import without_soft_slots

# A question that names more labels than these fits no row beside its text.
MAX_NAMED = 12


@dataclass(frozen=True)
class Probed:
    """A start whose linear head was fitted to frozen features, and that head."""

    start: Start
    probe: LinearProbe


def read_prompt(path: Path) -> tuple[Prompt, str]:
    """The file of a single prompt and its version. Raises ConfigError with one line for a person."""
    try:
        data = path.read_bytes()
        prompt = decode_prompt(data)
    except OSError as error:
        raise ConfigError(f"prompt: {path}: {error.strerror}") from None
    except PromptStoreError as error:
        raise ConfigError(f"prompt: {path}: {error}") from None
    if prompt.manifest.members:  # each has a head of its own; there is not one that could go on learning
        raise ConfigError(
            f"prompt: {path} is an ensemble of {len(prompt.manifest.members)} prompts; name one prompt's file, as the "
            "run folder has them in seeds/"
        )
    return prompt, version_of(data)


def bare(config: TrainConfig, data: TaskData, backbone: Backbone) -> Probed:
    """Rows of the text alone, with the linear probe: what head-only is, and where full fine-tuning starts."""
    return _probed(_with_template(config, None), data, backbone)


def from_file(prompt: Prompt, data: TaskData, backbone: Backbone) -> Start:
    """A trained prompt, held as it is in its file; a linear head goes on learning.

    Raises ConfigError: it was made for another model, other labels, or another kind of text.
    """
    manifest = prompt.manifest.model_copy(update={"calibration": None, "golden": ()})
    try:
        backbone.load_prompt(prompt)
    except PromptStoreError as error:
        raise ConfigError(f"prompt: {error}") from None
    if manifest.labels != data.labels:
        raise ConfigError(f"prompt: its labels are {', '.join(manifest.labels)}; the examples have others")
    if backbone.row_encoder(manifest).takes_pair != data.has_pairs:
        raise ConfigError(
            f"prompt: the examples are {'pairs' if data.has_pairs else 'single texts'}, unlike its texts"
        )
    tensors = {name: torch.tensor(array).float() for name, array in prompt.tensors.items()}
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
    return Start(manifest, head, {name: tensor for name, tensor in tensors.items() if name not in head})


def hard(config: TrainConfig, data: TaskData, backbone: Backbone) -> tuple[Start, tuple[str, ...]]:
    """A template of words, with a verbalizer where the model has a language-model head and a word for each label, else
    with a linear head that starts as a probe. Also notes for a person.

    The words are those of `head.words`, else the labels' own names.
    """
    notes: tuple[str, ...] = ()
    if backbone.has_lm_head:
        try:
            return cloze(config, data, backbone), ()
        except IncompatiblePrompt as error:
            if config.head.words is not None:
                raise ConfigError(f"head.words: {error}") from None
            notes = (f"fixed prompt: {error}; it has a linear head instead. Give words under [head.words]",)
    return _probed(_with_template(config, _question(config, data)), data, backbone).start, notes


def cloze(config: TrainConfig, data: TaskData, backbone: Backbone) -> Start:
    """A template with a mask that the language model fills with a label's word.

    Raises IncompatiblePrompt when a label has no word of one token.
    """
    words = config.head.words or {
        label: (text,) for label, text in zip(data.labels, _texts(config, data), strict=True)
    }
    asked = _with_template(config, _cloze_template(config, data, backbone))
    head = config.head.model_copy(update={"type": "verbalizer", "words": words})
    prompt = asked.prompt.model_copy(update={"pooling": "mask"})
    update = {"method": "hard-prompt", "head": head, "prompt": prompt}
    manifest = build_manifest(resolve(asked.model_copy(update=update), data, backbone), data, backbone)
    backbone.bind(manifest, {})
    backbone.row_encoder(manifest)
    return Start(manifest)


def zero_shot(config: TrainConfig, data: TaskData, backbone: Backbone) -> Start:
    """The hard prompt before anything is trained: the cloze where there can be one, else label descriptions as
    `promptmux train --method hard-prompt` has them.
    """
    if backbone.has_lm_head:
        with suppress(IncompatiblePrompt):
            return cloze(config, data, backbone)
    head = config.head.model_copy(update={"type": "label_embeddings", "words": None})
    plain = _with_template(config, None).model_copy(update={"method": "hard-prompt", "head": head})
    resolved = resolve(plain, data, backbone)
    vectors = torch.from_numpy(backbone.encode_labels(label_texts(resolved)))
    return Start(build_manifest(resolved, data, backbone), {"verbalizer.label_embeddings": vectors})


def _probed(config: TrainConfig, data: TaskData, backbone: Backbone) -> Probed:
    manifest = build_manifest(resolve(config, data, backbone), data, backbone, method="head-only")
    encoder = backbone.row_encoder(manifest)
    train, dev = (encode(encoder, examples, data.labels) for examples in (data.train, data.dev))
    head = {
        "head.0.weight": torch.zeros(len(data.labels), backbone.shape.hidden_size),
        "head.0.bias": torch.zeros(len(data.labels)),
    }
    blank = backbone.bind(manifest, head)
    states, dev_states = (features(backbone, blank, split.rows) for split in (train, dev))
    probe = fit_probe(
        states, train.targets, dev_states, dev.targets, data.labels, multi_label=data.multi_label
    )
    return Probed(Start(manifest, probe.tensors()), probe)


def _with_template(config: TrainConfig, template: Template | None) -> TrainConfig:
    """The configuration of a linear head on this template, or on the text alone."""
    pooling = config.prompt.pooling
    prompt = config.prompt.model_copy(
        update={
            "template": None if template is None else str(template),
            "pooling": None if pooling == "mask" else pooling,
            # What only a prompt that is trained has.
            "num_virtual_tokens": None,
            "encoder_hidden_size": None,
            "init_from": None,
            "init_version": None,
            "reparameterisation": None,
        }
    )
    head = config.head.model_copy(update={"type": "linear", "words": None, "start": "probe"})
    return config.model_copy(update={"method": "head-only", "prompt": prompt, "head": head})


def _given(config: TrainConfig) -> Template | None:
    """The configuration's template without virtual tokens, if it has words of its own."""
    try:
        template = without_soft_slots(parse_template(config.prompt.template or "{text}"))
    except InvalidTemplate as error:
        raise ConfigError(f"prompt.template: {error}") from None
    said = any(isinstance(part, Literal) and part.text.strip() for part in template.parts)
    return template if said or template.has_mask else None


def _question(config: TrainConfig, data: TaskData) -> Template:
    """A template for a linear head: the given one, the task's text, or a question that names the labels."""
    given = _given(config)
    if given is not None:
        return Template(tuple(part for part in given.parts if not isinstance(part, MaskSlot)))
    names = _texts(config, data)
    question = "What is this about?"
    if len(names) <= MAX_NAMED:
        question = f"Is this {', '.join(names[:-1])} or {names[-1]}?" if names[1:] else f"Is this {names[0]}?"
    return Template((*_slots(data), Literal(f" {config.prompt.task_text or question}")))


def _cloze_template(config: TrainConfig, data: TaskData, backbone: Backbone) -> Template:
    """A template with a mask: the given one, or LM-BFF's for one text and for two (its table 1)."""
    given = _given(config)
    if given is not None and given.has_mask:
        return given
    if config.prompt.task_text or backbone.is_causal or not data.has_pairs:
        asked = (*_slots(data), Literal(f" {config.prompt.task_text or 'It was'} "), MaskSlot())
        return Template(asked if backbone.is_causal else (*asked, Literal(".")))
    return Template((TextSlot(), Literal(" ? "), MaskSlot(), Literal(" , "), PairSlot()))


def _slots(data: TaskData) -> tuple[TextSlot | PairSlot | Literal, ...]:
    return (TextSlot(), Literal(" "), PairSlot()) if data.has_pairs else (TextSlot(),)


def _texts(config: TrainConfig, data: TaskData) -> tuple[str, ...]:
    """The labels' names as words."""
    plain = config.head.model_copy(update={"descriptions": None})
    return label_texts(config.model_copy(update={"labels": data.labels, "head": plain}))
