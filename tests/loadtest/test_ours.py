from __future__ import annotations

import pytest
import torch

from backbone import Backbone
from loadtest.bench import ours
from tests.backbone.families import checkpoint


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return ours.load("eager", str(checkpoint("bert")), "float32")


def test_a_mode_that_is_not_there_is_refused() -> None:
    with pytest.raises(ours.UnknownMode, match=r"warp.*eager"):
        ours.load("warp")


def test_prompts_differ_and_have_memory_of_their_own(tiny: Backbone) -> None:
    for kind in ("soft", "prefix"):
        made = ours.prompts(tiny, kind, 40)
        tensors = [p.soft_prompt if kind == "soft" else p.prefix_keys[0] for p in made]
        assert all(tensor is not None for tensor in tensors)
        assert len({tensor.data_ptr() for tensor in tensors if tensor is not None}) == 40
        assert not any(torch.equal(tensors[0], other) for other in tensors[1:])  # type: ignore[arg-type]
        assert made[0].num_virtual_tokens == 20


def test_a_side_walks_through_all_its_tasks(tiny: Backbone) -> None:
    rows = ours.encode(tiny, "prefix", ["a good film"] * 4)
    side = ours.Side(tiny, rows, ours.prompts(tiny, "prefix", 10), batch=3)
    for expected in ({0, 1, 2, 3}, set(range(8)), set(range(10))):
        assert side.run() > 0
        assert side.met == expected


def test_a_side_may_have_an_order_of_its_own(tiny: Backbone) -> None:
    rows = ours.encode(tiny, "soft", ["a good film"] * 4)
    side = ours.Side(tiny, rows, ours.prompts(tiny, "soft", 3), batch=2, order=[2, 0, 2, 2])
    side.run()
    side.run()
    assert side.met == {0, 2}
