"""Owns what a trained prompt's file says: tensors as stored, calibration, golden examples, and the training
record.

The record holds what decides the result and nothing else, no paths and no times, so that the same training
gives the same bytes. Knows no optimiser and no folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from backbone import Backbone
from prompt_store import Calibration, Golden, Manifest, Prompt, decode_prompt, encode_prompt
from trainer.calibrate import calibrate
from trainer.config import MAX_GOLDEN, TrainConfig
from trainer.data import TaskData
from trainer.evaluation import Encoded, encode, logits, score
from trainer.gate import RECORD, Floors, recorded
from trainer.methods import group_of
from trainer.scores import Scores, decide
from trainer.sources import Example


@dataclass(frozen=True)
class PromptFile:
    """A finished prompt: the bytes to publish, and how it scores as served. `notes` are for a person."""

    data: bytes
    dev: Scores
    test: Scores
    notes: tuple[str, ...] = ()


def stored(name: str, tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16 | np.float32]]:
    """A tensor as the file holds it: soft prompts and prefixes in F16 (finer than the bf16 they are served
    in), heads in F32.
    """
    array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    if group_of(name) == "prompt" and float(np.abs(array).max(initial=0.0)) < float(np.finfo(np.float16).max):
        return array.astype(np.float16)
    return array


def training_record(
    config: TrainConfig,
    data: TaskData,
    backbone: Backbone,
    seed: int | None,
    dev: Scores,
    floors: Floors | None = None,
) -> dict[str, JsonValue]:
    """What a manifest says about how its prompt was made; the publish gate compares its dev scores."""
    settings = config.model_dump(
        mode="json", exclude_none=True, include={"prompt", "head", "optimiser", "calibrate"}
    )
    settings["prompt"].pop("init_from", None)  # a place; init_version says what was there
    if seed is None:  # nothing was optimised step by step
        settings.pop("optimiser")
    record: dict[str, JsonValue] = {
        "data": {"digests": dict(data.digests()), "sizes": dict(data.sizes())},
        "dev": recorded(dev),
        "dtype": backbone.dtype_name,
        "settings": settings,
    }
    if seed is not None:
        record |= {"seed": seed, "seeds": list(config.seeds)}
    if floors is not None:
        record[RECORD] = floors.record()
    return record


def finish(
    config: TrainConfig,
    data: TaskData,
    backbone: Backbone,
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    seed: int | None,
    splits: Mapping[str, Encoded],
    floors: Floors | None = None,
) -> PromptFile:
    """Calibrate, choose golden examples, write the file, and score it as a server would load it.

    `floors` are what it will be compared with when it is published; without them it never is. What `manifest` says of
    the training already is kept.
    """
    arrays = {name: stored(name, tensor) for name, tensor in tensors.items()}
    served = backbone.load_prompt(decode_prompt(encode_prompt(manifest, arrays)))
    dev_logits = logits(backbone, served, splits["dev"].rows)
    if config.calibrate:
        calibration = _calibration(config, backbone, Prompt(manifest, arrays), dev_logits, splits)
        manifest = manifest.model_copy(update={"calibration": calibration})
        served = backbone.load_prompt(Prompt(manifest, arrays))
        dev_logits = logits(backbone, served, splits["dev"].rows)
    dev = score(dev_logits, splits["dev"].targets, data.labels, multi_label=data.multi_label)
    golden, notes = _golden(config, data, backbone, Prompt(manifest, arrays))
    record = {**manifest.training, **training_record(config, data, backbone, seed, dev, floors)}
    manifest = manifest.model_copy(update={"golden": golden, "training": record})
    test = splits["test"] if len(splits["test"]) else splits["dev"]
    test_logits = logits(backbone, served, test.rows)
    return PromptFile(
        encode_prompt(manifest, arrays),
        dev,
        score(test_logits, test.targets, data.labels, multi_label=data.multi_label),
        notes,
    )


def _calibration(
    config: TrainConfig, backbone: Backbone, prompt: Prompt, dev_logits: Tensor, splits: Mapping[str, Encoded]
) -> Calibration:
    multi_label = prompt.manifest.multi_label
    if config.method != "hard-prompt":
        # What was trained on train is overconfident there: its temperature is read from dev.
        return calibrate(dev_logits, splits["dev"].targets, multi_label=multi_label, with_bias=False)
    train_logits = logits(backbone, backbone.load_prompt(prompt), splits["train"].rows)
    return calibrate(train_logits, splits["train"].targets, multi_label=multi_label, with_bias=True)


def _golden(
    config: TrainConfig, data: TaskData, backbone: Backbone, prompt: Prompt
) -> tuple[tuple[Golden, ...], tuple[str, ...]]:
    if config.golden == "train":
        candidates = [_as_golden(example) for example in _one_short_example_each(data)]
    else:
        candidates = [
            Golden(text=golden.text, text_pair=golden.text_pair, label=golden.label)
            for golden in config.golden
        ]
    if not candidates:
        return (), ()
    examples = [Example(golden.text, golden.text_pair, (golden.label,)) for golden in candidates]
    encoded = encode(backbone.row_encoder(prompt.manifest), examples, data.labels)
    scores = logits(backbone, backbone.load_prompt(prompt), encoded.rows)
    values = (scores.sigmoid() if data.multi_label else scores).numpy()
    right = (decide(values, multi_label=data.multi_label) * encoded.targets).sum(axis=1) > 0
    kept = tuple(golden for golden, hit in zip(candidates, right, strict=True) if hit)
    missed = [golden for golden, hit in zip(candidates, right, strict=True) if not hit]
    notes = tuple(
        f"golden example {at + 1} of {len(candidates)} is not answered {golden.label!r} and was left out"
        for at, golden in enumerate(candidates)
        if golden in missed and config.golden != "train"
    )
    return kept[:MAX_GOLDEN], notes


def _one_short_example_each(data: TaskData) -> Sequence[Example]:
    """The shortest training example of each label, twice as many labels as are wanted: some will be
    missed.
    """
    shortest: dict[str, Example] = {}
    for example in data.train:
        for label in example.labels:
            if label not in shortest or len(example.text) < len(shortest[label].text):
                shortest[label] = example
    return [shortest[label] for label in data.labels if label in shortest][: 2 * MAX_GOLDEN]


def _as_golden(example: Example) -> Golden:
    return Golden(text=example.text, text_pair=example.text_pair, label=example.labels[0])
