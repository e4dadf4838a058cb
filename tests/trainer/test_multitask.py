"""Several tasks on shared tensors: where they start, what they share, and that they fold as PEFT computes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from peft import MultitaskPromptTuningConfig
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding
from torch import Tensor, nn

from trainer.multitask import Factored, MultitaskParameterisation, Shared

N, WIDTH, LAYERS, HEADS, HEAD_DIM, TASKS = 5, 11, 3, 2, 4, 3
WAYS: list[MultitaskParameterisation] = [Shared(), Factored(), Factored(rank=2)]
EVERY_WAY = pytest.mark.parametrize("way", WAYS, ids=repr)


def prompt() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    prefix = {
        f"prefix.{stack}.{part}": torch.randn(LAYERS, N, HEADS, HEAD_DIM, generator=generator)
        for stack in ("encoder", "cross")
        for part in ("key", "value")
    }
    return {"soft_prompt": torch.randn(N, WIDTH, generator=generator)} | prefix


def heads() -> list[dict[str, Tensor]]:
    """Tasks have different numbers of labels."""
    return [
        {"head.0.weight": torch.full((2 + k, WIDTH), float(k)), "head.0.bias": torch.ones(2 + k)}
        for k in range(TASKS)
    ]


def moved(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in raw.items()
    }


@EVERY_WAY
def test_every_task_starts_at_the_wanted_prompt_with_its_own_head(way: MultitaskParameterisation) -> None:
    raw = way.start(prompt(), heads(), seed=0)
    for task, own in enumerate(heads()):
        expected, folded = prompt() | own, way.fold_task(raw, task)
        assert folded.keys() == expected.keys()
        assert all(torch.equal(folded[name], tensor) for name, tensor in expected.items())
    start = way.new_task(raw)
    assert start.keys() == prompt().keys()
    assert all(torch.equal(start[name], tensor) for name, tensor in prompt().items())


@EVERY_WAY
def test_a_task_learns_into_what_is_shared_and_what_is_its_own(way: MultitaskParameterisation) -> None:
    raw = {name: t.requires_grad_() for name, t in moved(way.start(prompt(), heads(), seed=0)).items()}
    sum(tensor.square().sum() for tensor in way.fold_task(raw, 1).values()).backward()  # type: ignore[union-attr]
    reached = {name for name, tensor in raw.items() if tensor.grad is not None and tensor.grad.any()}
    assert reached == {name for name in raw if name.startswith(("shared.", "task.1."))}


def test_a_second_rank_is_learned_from_the_start() -> None:
    """Its rows of v are zero at first; with its columns of u zero as well, neither would ever move."""
    raw = {name: t.requires_grad_() for name, t in Factored(2).start(prompt(), heads(), seed=0).items()}
    Factored(2).fold_task(raw, 0)["soft_prompt"].square().sum().backward()
    gradient = raw["task.0.soft_prompt.v"].grad
    assert gradient is not None
    assert gradient[1].any()


@pytest.mark.parametrize("rank", [1, 2])
def test_factored_soft_prompts_are_pefts(rank: int) -> None:
    way = Factored(rank)
    raw = moved(way.start({"soft_prompt": prompt()["soft_prompt"]}, heads(), seed=0))
    theirs = MultitaskPromptEmbedding(
        MultitaskPromptTuningConfig(
            num_virtual_tokens=N, token_dim=WIDTH, num_transformer_submodules=1, num_tasks=TASKS,
            num_ranks=rank, prompt_tuning_init="RANDOM", task_type="SEQ_CLS",
        ),
        nn.Embedding(7, WIDTH),
    )  # fmt: skip
    theirs.load_state_dict(
        {
            "embedding.weight": raw["shared.soft_prompt"],
            "prefix_task_cols": torch.stack([raw[f"task.{k}.soft_prompt.u"] for k in range(TASKS)]),
            "prefix_task_rows": torch.stack([raw[f"task.{k}.soft_prompt.v"] for k in range(TASKS)]),
        }
    )
    with torch.no_grad():
        expected = theirs(torch.arange(N).expand(TASKS, N), torch.arange(TASKS))
    for task in range(TASKS):
        assert torch.allclose(way.fold_task(raw, task)["soft_prompt"], expected[task], atol=1e-6)


def test_factored_prefixes_scale_each_key_by_its_token_and_place() -> None:
    way = Factored()
    raw = moved(way.start(prompt(), heads(), seed=0))
    folded, shared = way.fold_task(raw, 2), raw["shared.prefix.cross.value"]
    u, v = raw["task.2.prefix.cross.value.u"], raw["task.2.prefix.cross.value.v"]
    at = {"layer": 2, "token": 3, "head": 1, "place": 2}
    column = (at["layer"] * HEADS + at["head"]) * HEAD_DIM + at["place"]
    expected = shared[2, 3, 1, 2] * u[3, 0] * v[0, column]
    assert torch.isclose(folded["prefix.cross.value"][2, 3, 1, 2], expected)


def test_a_new_task_starts_from_the_mean_of_the_others() -> None:
    way = Factored(rank=2)
    raw = moved(way.start(prompt(), heads(), seed=0))
    mean = torch.stack([way.fold_task(raw, k)["soft_prompt"] for k in range(TASKS)]).mean(dim=0)
    assert torch.allclose(way.new_task(raw)["soft_prompt"], mean, atol=1e-6)
    # The same factors written differently are the same tasks.
    raw["task.0.soft_prompt.u"], raw["task.0.soft_prompt.v"] = (
        -8 * raw["task.0.soft_prompt.u"],
        raw["task.0.soft_prompt.v"] / -8,
    )
    assert torch.allclose(way.new_task(raw)["soft_prompt"], mean, atol=1e-6)
