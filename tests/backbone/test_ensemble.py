"""An ensemble answers with the mean of what its members answer alone, whatever else is in the batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backbone import Backbone, DevicePrompt, Row
from backbone.ensemble import join_logits, together
from backbone.workers import Workers
from prompt_store import Manifest, Prompt, decode_prompt, encode_prompt, join_prompts, split_members
from tests.backbone.families import BOTH, FAMILIES, tiny
from tests.backbone.law_tasks import MAXIMAL, TEXTS
from tests.backbone.prompts import manifest, tensors

CLOSE = {"abs": 1e-5}
# Kinds of member by what is their own, and how the labels are chosen.
KINDS = [(0, 0, False), (3, 0, False), (0, 4, True), (2, 3, False)]


def files(
    bone: Backbone, soft: int, prefix: int, *, multi_label: bool = False, count: int = 3
) -> list[Prompt]:
    """Prompts of one task, each with a calibration of its own but the first."""
    made = []
    for seed in range(count):
        calibration = {"temperature": 1.0 + seed, "bias": (0.3 * seed, 0.0, -0.2)} if seed else None
        own = manifest(bone, soft=soft, labels=3, multi_label=multi_label, calibration=calibration)
        weights = tensors(bone, soft=soft, prefix=prefix, labels=3, seed=seed)
        made.append(Prompt(own, {name: tensor.numpy() for name, tensor in weights.items()}))
    return made


def joined(members: list[Prompt]) -> Prompt:
    data = [(f"{at}", encode_prompt(one.manifest, one.tensors)) for at, one in enumerate(members)]
    return decode_prompt(join_prompts(data))


def rows_of(bone: Backbone, of: Manifest, texts: tuple[str, ...] = TEXTS) -> list[Row]:
    return bone.row_encoder(of).encode(list(texts))


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize(("soft", "prefix", "multi_label"), KINDS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_it_is_the_mean_of_its_members_alone(
    family: str, soft: int, prefix: int, multi_label: bool, attention: str
) -> None:
    bone = tiny(family, attention=attention)
    members = files(bone, soft, prefix, multi_label=multi_label)
    joint = joined(members)
    rows = rows_of(bone, joint.manifest, (*TEXTS, MAXIMAL))
    alone = [bone.load_prompt(member) for member in members]
    each = np.array([[bone.score([row], [own])[0] for row in rows] for own in alone])
    assert np.abs(each[0] - each[1]).max() > 0.1, "members that answer alike would prove nothing"
    prompt = bone.load_prompt(joint)
    neighbour = bone.load_prompt(members[1])
    # Every second row is a neighbour's, so that rows are pushed apart and together again.
    mixed_rows = [row for row in rows for _ in (0, 1)]
    mixed_prompts = [one for _ in rows for one in (prompt, neighbour)]
    for score in (bone.score, bone.score_on_lane):
        scores = score(mixed_rows, mixed_prompts)
        assert scores[::2] == [pytest.approx(want, **CLOSE) for want in each.mean(axis=0).tolist()]
        assert scores[1::2] == [pytest.approx(want, **CLOSE) for want in each[1].tolist()]
    assert bone.score_on_lane(rows[:1], [prompt], alone=True) == [
        pytest.approx(each.mean(axis=0)[0], **CLOSE)
    ]
    with torch.no_grad():
        logits = bone.forward(mixed_rows, mixed_prompts)[::2]
    squash = torch.sigmoid if multi_label else lambda x: torch.softmax(x, dim=-1)
    assert torch.stack([squash(own) for own in logits]).numpy() == pytest.approx(each.mean(axis=0), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_loaded_is_what_is_bound(family: str) -> None:
    """Folded or not, from the file or from tensors: the same scores."""
    bone = tiny(family)
    joint = joined(files(bone, 3, 0))
    prompt = bone.load_prompt(joint)
    bound = bone.bind(joint.manifest, {name: torch.tensor(array) for name, array in joint.tensors.items()})
    rows = rows_of(bone, joint.manifest)
    for one, other in zip(
        bone.score(rows, [prompt] * len(rows)), bone.score(rows, [bound] * len(rows)), strict=True
    ):
        assert one == pytest.approx(other, **CLOSE)
    alone = [bone.load_prompt(Prompt(of, own)) for of, own in split_members(joint.manifest, joint.tensors)]
    assert prompt.nbytes == sum(member.nbytes for member in alone)
    assert prompt.num_virtual_tokens == joint.num_virtual_tokens == 9


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_member_that_is_not_a_number_makes_its_row_so_and_no_other(multi_label: bool) -> None:
    bone = tiny("bert")
    members = [bone.load_prompt(one) for one in files(bone, 2, 3, multi_label=multi_label)]
    broken = replace(members[1], soft_prompt=torch.full_like(_soft(members[1]), math.nan))
    sick, well = together([members[0], broken, members[2]]), together(members)
    rows = rows_of(bone, files(bone, 2, 3)[0].manifest)[:4]
    for score in (bone.score, bone.score_on_lane):
        scores = score(rows, [well, sick, well, members[0]])
        assert all(map(math.isnan, scores[1]))
        assert [scores[0], scores[2]] == [
            pytest.approx(score([row], [well])[0], **CLOSE) for row in (rows[0], rows[2])
        ]
        assert scores[3] == pytest.approx(score(rows[3:], members[:1])[0], **CLOSE)
    with torch.no_grad():
        assert bone.forward(rows[:1], [sick])[0].isnan().all()


def _soft(prompt: DevicePrompt) -> Tensor:
    assert prompt.soft_prompt is not None
    return prompt.soft_prompt


def test_probabilities_too_small_for_float32_keep_their_logits() -> None:
    members = [torch.tensor([200.0, 0.0, -200.0]), torch.tensor([200.0, -300.0, 0.0])]
    for multi_label in (False, True):
        prompt = _ensemble_of(2, multi_label=multi_label)
        got = join_logits(members, [prompt])[0]
        assert torch.isfinite(got).all()
        one = [torch.stack(members).double().sigmoid(), torch.stack(members).double().softmax(dim=-1)]
        mean = one[0 if multi_label else 1].mean(dim=0)
        back = got.double().sigmoid() if multi_label else got.double().softmax(dim=-1)
        torch.testing.assert_close(back, mean, rtol=1e-4, atol=0.0)


def _ensemble_of(count: int, *, multi_label: bool) -> DevicePrompt:
    bone = tiny("bert")
    own = bone.load_prompt(files(bone, 1, 0, multi_label=multi_label, count=1)[0])
    return together([own] * count)


def test_one_member_is_itself_and_features_take_no_ensemble() -> None:
    bone = tiny("bert")
    prompts = files(bone, 2, 0)
    member = bone.load_prompt(prompts[0])
    assert together([member]) is member
    with pytest.raises(AssertionError, match="an ensemble's rows"):
        bone.features(rows_of(bone, prompts[0].manifest)[:1], [together([member, member])])


def test_a_row_that_is_wide_is_so_for_an_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone long text gains from several cores inside its operators; its members' rows are no reason against it."""
    bone = tiny("bert")
    workers = Workers(2)
    monkeypatch.setattr(bone, "_workers", workers)
    joint = joined(files(bone, 2, 0))
    row, prompt = rows_of(bone, joint.manifest, (MAXIMAL,))[0], bone.load_prompt(joint)
    monkeypatch.setattr("backbone.workers._WIDE", len(row))
    used: list[str] = []
    real = workers.wide
    monkeypatch.setattr(workers, "wide", lambda function: (used.append("wide"), real(function))[1])
    wide = bone.score_on_lane([row], [prompt], alone=True)
    assert used == ["wide"]
    assert wide == [pytest.approx(bone.score_on_lane([row], [prompt])[0], **CLOSE)]
    assert used == ["wide"]
    # Several rows are dealt to the cores by member, and joined after.
    assert bone.score([row] * 3, [prompt] * 3) == [pytest.approx(wide[0], **CLOSE)] * 3
