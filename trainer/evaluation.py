"""Owns the way from rows to scores on held-out examples. Knows no optimiser and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from backbone import Backbone, DevicePrompt, Row, RowEncoder
from prompt_store import Manifest, Prompt
from trainer.errors import DataError
from trainer.ranks import Ranks
from trainer.scores import Scores, Targets, decide, measure, one_hot
from trainer.sources import Example

# Rows of one forward without gradients; more gain nothing, since rows are packed without padding.
EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Encoded:
    """One split, tokenised once per run: rows and targets [examples, labels] in the same order."""

    rows: tuple[Row, ...]
    targets: Targets

    def __len__(self) -> int:
        return len(self.rows)


def encode(encoder: RowEncoder, examples: Sequence[Example], labels: Sequence[str]) -> Encoded:
    """Tokenise examples with the code that the server uses."""
    pairs = [example.text_pair for example in examples] if encoder.takes_pair else None
    rows = encoder.encode([example.text for example in examples], pairs)
    return Encoded(tuple(rows), one_hot([example.labels for example in examples], labels))


def by_length(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    """Indices in batches of rows of like length, which attention pads least."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def features(backbone: Backbone, prompt: DevicePrompt, rows: Sequence[Row]) -> Tensor:
    """Pooled hidden states [rows, hidden], float32, on the host."""
    result = torch.empty(len(rows), backbone.shape.hidden_size)
    _for_all(backbone, rows, lambda some: backbone.features(some, [prompt] * len(some)), result)
    return result


def logits(backbone: Backbone, prompt: DevicePrompt, rows: Sequence[Row]) -> Tensor:
    """Label logits [rows, labels], float32, on the host."""
    result = torch.empty(len(rows), prompt.num_labels)
    _for_all(backbone, rows, lambda some: torch.stack(backbone.forward(some, [prompt] * len(some))), result)
    return result


@dataclass(frozen=True)
class _Held:
    """A prompt and held-out rows, as `trainer.ranks.Work`."""

    manifest: Manifest
    tensors: Mapping[str, Tensor]
    rows: Sequence[Row]
    of: Literal["logits", "features"]

    @property
    def lengths(self) -> Sequence[int]:
        return [len(row) for row in self.rows]

    def run(self, backbone: Backbone, own: list[int]) -> Tensor:
        function = logits if self.of == "logits" else features
        prompt = backbone.bind(self.manifest, self.tensors)
        return function(backbone, prompt, [self.rows[at] for at in own])


def shared(
    backbone: Backbone,
    ranks: Ranks,
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    rows: Sequence[Row],
    of: Literal["logits", "features"] = "logits",
) -> Tensor:
    """`logits` or `features` of a prompt, shared among the processes of a run."""
    parts = ranks.share(backbone, _Held(manifest, tensors, rows, of))
    if not parts:
        return _Held(manifest, tensors, rows, of).run(backbone, [])
    result = torch.empty(len(rows), parts[0][1].shape[1])
    for own, values in parts:
        result[own] = values
    return result


def _for_all(
    backbone: Backbone, rows: Sequence[Row], function: Callable[[list[Row]], Tensor], result: Tensor
) -> None:
    """Put `function` of rows → [rows, n] into `result`, batch by batch, each shared among the CPU's cores."""
    for batch in by_length(rows, EVALUATION_BATCH):

        def share(own: list[int], batch: list[int] = batch) -> Tensor:
            with torch.no_grad():  # gradients are on in every new thread
                return function([rows[batch[at]] for at in own]).float().cpu()

        for own, values in backbone.share(share, [rows[at] for at in batch]):
            result[[batch[at] for at in own]] = values


def loss(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Mean cross entropy, or mean binary cross entropy over all labels of a multi-label task."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
    return F.cross_entropy(logits, targets.argmax(dim=1))


def score(
    logits: Tensor,
    targets: Targets,
    labels: Sequence[str],
    *,
    multi_label: bool,
    thresholds: Sequence[float] | None = None,
) -> Scores:
    """Decide each row by its logits and compare with the targets."""
    values: npt.NDArray[np.float32] = (logits.sigmoid() if multi_label else logits).numpy()
    decisions = decide(values, multi_label=multi_label, thresholds=thresholds)
    return measure(targets, decisions, labels, multi_label=multi_label)


def evaluate(backbone: Backbone, prompt: Prompt, examples: Sequence[Example]) -> Scores:
    """Scores of a prompt file on labelled examples, through the checks and the forward that serve it.

    Raises DataError for a label that the prompt does not know, or for pairs where it takes single texts.
    """
    manifest = prompt.manifest
    encoder = backbone.row_encoder(manifest)
    for example in examples:
        for label in example.labels:
            if label not in manifest.labels:
                raise DataError(f"{example.place}: the prompt knows no label {label!r}")
        if (example.text_pair is not None) != encoder.takes_pair:
            kind = "text pairs" if encoder.takes_pair else "single texts"
            raise DataError(f"{example.place}: this prompt takes {kind}")
    encoded = encode(encoder, examples, manifest.labels)
    scores = logits(backbone, backbone.load_prompt(prompt), encoded.rows)
    return score(
        scores,
        encoded.targets,
        manifest.labels,
        multi_label=manifest.multi_label,
        thresholds=manifest.thresholds,
    )
