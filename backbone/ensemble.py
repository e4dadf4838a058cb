"""Prompt ensembles: several prompts of one task over one frozen model, whose answer is the mean of theirs.

Owns how a row under an ensemble becomes a row for each member of the same batch, and how the members' answers become
one again (Lester et al. 2021, arXiv 2104.08691, section 6: "a single forward pass with a batch size of N"; they join by
majority vote, we by the mean of probabilities). Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.native import PrefixAddresses
from backbone.prompts import DevicePrompt
from backbone.rows import Row


def together(members: Sequence[DevicePrompt]) -> DevicePrompt:
    """The ensemble of these prompts, which read rows alike and have the same labels; a single one is itself."""
    if len(members) == 1:
        return members[0]
    # Only what all members share is its own: `gather` refuses it, so that no forward takes it for one of them.
    return replace(
        members[0],
        soft_prompt=None,
        prefix_keys=(),
        prefix_values=(),
        prefix_addresses=PrefixAddresses(),
        calibration=None,
        nbytes=sum(member.nbytes for member in members),
        folded=None,
        folded_tokens=0,
        decoder=None,
        members=tuple(members),
    )


def expand(
    rows: Sequence[Row], prompts: Sequence[DevicePrompt]
) -> tuple[Sequence[Row], Sequence[DevicePrompt]]:
    """Rows and prompts with each row of an ensemble once for every member, side by side."""
    if not any(prompt.members for prompt in prompts):
        return rows, prompts
    pairs = [
        (row, own) for row, prompt in zip(rows, prompts, strict=True) for own in prompt.members or (prompt,)
    ]
    return [row for row, _ in pairs], [own for _, own in pairs]


def join_scores(scores: list[tuple[float, ...]], prompts: Sequence[DevicePrompt]) -> list[tuple[float, ...]]:
    """Probabilities of expanded rows to those of the rows under `prompts`: (1/N) Σₖ pₖ(label | text).

    Where one member's are NaN, so is their mean.
    """
    if len(scores) == len(prompts):
        return scores
    rest = iter(scores)
    return [
        tuple(
            sum(own) / len(prompt.members) for own in zip(*(next(rest) for _ in prompt.members), strict=True)
        )
        if prompt.members
        else next(rest)
        for prompt in prompts
    ]


def join_logits(logits: list[Tensor], prompts: Sequence[DevicePrompt]) -> list[Tensor]:
    """Logits [labels] of expanded rows to those of the rows under `prompts`.

    An ensemble's are those whose softmax (sigmoid, where several labels may hold) is the mean of the members'.
    """
    if len(logits) == len(prompts):
        return logits
    rest = iter(logits)
    return [
        _joined(torch.stack([next(rest) for _ in prompt.members]), multi_label=prompt.multi_label)
        if prompt.members
        else next(rest)
        for prompt in prompts
    ]


def _joined(logits: Tensor, *, multi_label: bool) -> Tensor:
    """[members, labels] → [labels], in logarithms: a probability that is 0 in float32 still has one."""
    if multi_label:
        # log p − log(1 − p), whose N cancel
        return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)
    return F.log_softmax(logits, dim=-1).logsumexp(dim=0) - math.log(len(logits))
