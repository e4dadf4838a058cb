"""Owns training in one batch: the next step of many learners through one frozen forward and one backward.

Rows are independent (the law), and so are prompts: the gradient of a prompt's loss is what it would be alone, whoever
else is in the batch. Rows gather their own prompt; each learner's loss is its own mean; one backward gives all
gradients, since no loss depends on another's parameters. Knows neither schedule nor optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from backbone import Backbone, Row
from prompt_store import Manifest
from trainer.evaluation import loss
from trainer.learner import Learner, Tensors
from trainer.ranks import ALONE, Ranks


def step(backbone: Backbone, learners: Sequence[Learner], ranks: Ranks = ALONE) -> list[float]:
    """One step of each learner, all in one forward and backward; returns their losses."""
    graphs = [learner.folded() for learner in learners]
    # The forward differentiates with respect to what a prompt file holds; from there each learner's own fold leads
    # back to its parameters, once for the whole step.
    parts = [
        _Part(share.task.manifest, share.rows, share.targets, tensors, 1 / len(graph))
        for learner, graph in zip(learners, graphs, strict=True)
        for share, tensors in zip(learner.shares(), graph, strict=True)
    ]
    found = ranks.share(backbone, _Step(parts))
    of_parts = zip(*_total([sums for _, sums in found]), strict=True)
    result = []
    for learner, graph in zip(learners, graphs, strict=True):
        own = [next(of_parts) for _ in graph]
        tops = [
            (tensors[name], gradients[name])
            for tensors, (_, gradients) in zip(graph, own, strict=True)
            for name in gradients
        ]
        reached = [(top, gradient) for top, gradient in tops if top.requires_grad]
        learner.advance(
            value := sum(loss for loss, _ in own) / len(own),
            torch.autograd.grad(
                [top for top, _ in reached],
                list(learner.parameters.values()),
                [gradient for _, gradient in reached],
                allow_unused=True,
            ),
        )
        result.append(value)
    return result


@dataclass(frozen=True)
class _Part:
    """One task's part of a step: its rows, their targets, and the tensors of its prompt.

    Its loss counts by `weight`: tasks that share parameters weigh the same, as their learner's loss is the mean of
    theirs.
    """

    manifest: Manifest
    rows: Sequence[Row]
    targets: Tensor
    tensors: Tensors
    weight: float


@dataclass(frozen=True)
class _Sums:
    """Of some rows: each part's share of its loss, and of its gradients; None for a part without any of the rows."""

    losses: Sequence[float | None]
    gradients: Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class _Step:
    """A step of all learners, as `trainer.ranks.Work`."""

    parts: Sequence[_Part]

    @cached_property
    def places(self) -> Sequence[tuple[int, int]]:
        """Of each row: its part, and its number there."""
        return [(at, row) for at, part in enumerate(self.parts) for row in range(len(part.rows))]

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        return [len(row) for part in self.parts for row in part.rows]

    def run(self, backbone: Backbone, own: list[int]) -> _Sums:
        """Losses and gradients of these rows.

        Each core takes some of them forward and back; gradients are added in the order of the cores' shares, which
        depends on the rows' lengths alone.
        """
        leaves = [
            {name: t.detach().requires_grad_() for name, t in part.tensors.items()} for part in self.parts
        ]
        places = [self.places[row] for row in own]

        def share(some: list[int]) -> tuple[list[int], Tensor, Sequence[Tensor | None]]:
            members: dict[int, list[int]] = {}
            for at, place in enumerate(some):
                members.setdefault(places[place][0], []).append(at)
            prompts = {at: backbone.bind(self.parts[at].manifest, leaves[at]) for at in members}
            scores = backbone.forward(
                [rows[place] for place in some], [prompts[places[place][0]] for place in some]
            )
            values = []
            for key, its in members.items():
                part = self.parts[key]
                targets = part.targets[[places[some[at]][1] for at in its]]
                mean = loss(
                    torch.stack([scores[at] for at in its]), targets, multi_label=part.manifest.multi_label
                )
                values.append(mean * (len(its) / len(part.rows)))
            joined = torch.stack(values)
            weights = joined.new_tensor([self.parts[key].weight for key in members])
            wanted = [leaf for key in members for leaf in leaves[key].values()]
            return (
                list(members),
                joined.detach(),
                torch.autograd.grad(joined @ weights, wanted, allow_unused=True),
            )

        rows = [self.parts[part].rows[row] for part, row in places]
        losses: list[float | None] = [None] * len(self.parts)
        gradients: list[dict[str, Tensor]] = [{} for _ in self.parts]
        for _, (keys, values, found) in backbone.share(share, rows):
            of_all = iter(found)
            for key, value in zip(keys, values.tolist(), strict=True):
                losses[key] = value + (losses[key] or 0.0)
                for name in leaves[key]:
                    gradient = next(of_all)
                    if gradient is not None:
                        _add(gradients[key], name, gradient)
        return _Sums(losses, gradients)


def _total(found: Sequence[_Sums]) -> tuple[list[float], list[dict[str, Tensor]]]:
    """Of each part: its loss and its gradients, what the processes found added in their order."""
    losses = [0.0] * len(found[0].losses)
    gradients: list[dict[str, Tensor]] = [{} for _ in losses]
    for sums in found:
        for at, value in enumerate(sums.losses):
            losses[at] += value or 0.0
            for name, gradient in sums.gradients[at].items():
                _add(gradients[at], name, gradient)
    return losses, gradients


def _add(sums: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    sums[name] = sums[name] + gradient if name in sums else gradient
