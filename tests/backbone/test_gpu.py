"""The CUDA paths: the same answers as on the CPU, the law, one synchronisation for each batch, one lane."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

from backbone import Backbone, DevicePrompt, Row, load_backbone
from backbone.device_memory import device_memory
from tests.backbone.families import FAMILIES, checkpoint, tiny
from tests.backbone.law_tasks import KINDS, TEXTS, Task, kinds, tasks
from tests.backbone.prompts import manifest, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="NO GPU: the CUDA paths are not tested on this machine"
    ),
]


@functools.cache
def on_gpu(family: str) -> Backbone:
    return load_backbone(str(checkpoint(family)), device="cuda", dtype="float32")


def moved(family: str) -> list[Task]:
    """The law's soft prompts and prefixes, made again on the device."""
    bone, made = on_gpu(family), []
    for at, (soft, prefix) in enumerate(kinds(bone)):
        own = manifest(bone, soft=soft, labels=2 + at % 4)
        values = tensors(bone, soft=soft, prefix=prefix, labels=2 + at % 4, seed=at)
        made.append(Task(own, bone.bind(own, values)))
    return made


def batch(bone: Backbone, made: list[Task]) -> tuple[list[Row], list[DevicePrompt]]:
    picked = [(made[at % len(KINDS)], text) for at, text in enumerate(TEXTS * 3)]
    return [task.row(bone, text) for task, text in picked], [task.prompt for task, _ in picked]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_answers_as_a_cpu_does(family: str) -> None:
    with torch.no_grad():
        theirs = on_gpu(family).forward(*batch(on_gpu(family), moved(family)))
        ours = tiny(family).forward(*batch(tiny(family), tasks(family)[: len(KINDS)]))
    for got, want in zip(theirs, ours, strict=True):
        torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_holds_on_a_gpu(family: str) -> None:
    bone = on_gpu(family)
    rows, prompts = batch(bone, moved(family))
    with torch.no_grad():
        mixed = bone.forward(rows, prompts)
        alone = [bone.forward([row], [prompt])[0] for row, prompt in zip(rows, prompts, strict=True)]
    for got, want in zip(mixed, alone, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_batch_synchronises_once() -> None:
    bone = on_gpu("bert")
    rows, prompts = batch(bone, moved("bert"))
    bone.score(rows, prompts)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            bone.score(rows, prompts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in said if "synchroniz" in str(warning.message)]) == 1


def test_a_gpu_has_one_lane() -> None:
    bone = on_gpu("bert")
    rows, prompts = batch(bone, moved("bert"))
    assert bone.lanes == 1
    assert bone.score_on_lane(rows, prompts, alone=True) == bone.score(rows, prompts)


def test_a_gpu_says_what_it_holds() -> None:
    bone = on_gpu("bert")
    before = device_memory(bone.device)
    assert 0 < before["allocated"] <= before["reserved"] <= before["total"] - before["free"] < before["total"]
    kept = torch.zeros(32 * 2**20, dtype=torch.uint8, device=bone.device)
    assert device_memory(bone.device)["allocated"] >= before["allocated"] + kept.nbytes
    assert device_memory(torch.device("cpu")) == {}
