"""Prompts made by networks: where they start, and that they fold as PEFT's own networks compute.

Widths, heads, layers and lengths are all different numbers, so that two of them swapped cannot go unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig
from peft.tuners.p_tuning import PromptEncoder as PeftPromptEncoder
from peft.tuners.prefix_tuning import PrefixEncoder as PeftPrefixEncoder
from torch import Tensor, nn

from trainer.parameterisation import REPARAM, Parameterisation, Plain
from trainer.reparameterised import PrefixProjection, PromptEncoder, Residual

N, WIDTH, HIDDEN, LAYERS, HEADS, HEAD_DIM = 5, 12, 7, 3, 2, 4
SOFT_WAYS = [Residual(HIDDEN), PromptEncoder("mlp", HIDDEN), PromptEncoder("lstm", HIDDEN)]
EVERY_WAY = [Plain(), *SOFT_WAYS, PrefixProjection(HIDDEN, HEADS)]


def wanted(way: Parameterisation, count: int = N, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A head and what this way makes; prefixes in two stacks, as encoder–decoders have them."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) * 0.3

    tensors = {"head.0.weight": draw(2, WIDTH), "head.0.bias": draw(2)}
    if isinstance(way, PrefixProjection):
        for stack in ("encoder", "cross"):
            for part in ("key", "value"):
                tensors[f"prefix.{stack}.{part}"] = draw(LAYERS, count, HEADS, HEAD_DIM)
        return tensors
    return tensors | {"soft_prompt": draw(count, WIDTH)}


def moved(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every raw tensor a step away from its start, where nothing is zero or solved for any more."""
    generator = torch.Generator().manual_seed(9)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in raw.items()
    }


@pytest.mark.parametrize("way", EVERY_WAY, ids=repr)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_training_starts_at_the_wanted_values(
    way: Parameterisation, dtype: torch.dtype, bound: float
) -> None:
    target = wanted(way, dtype=dtype)
    raw = way.start(target, seed=3)
    folded = way.fold(raw)
    assert folded.keys() == target.keys()
    for name, tensor in target.items():
        assert folded[name].dtype == dtype
        assert torch.allclose(folded[name], tensor, atol=bound, rtol=0), name
    assert folded["head.0.weight"] is raw["head.0.weight"] is target["head.0.weight"]


@pytest.mark.parametrize("way", EVERY_WAY, ids=repr)
def test_every_raw_tensor_is_learned_from(way: Parameterisation) -> None:
    """A tensor without a gradient would be decoration: an input that no output hangs on."""
    raw = {name: tensor.requires_grad_() for name, tensor in moved(way.start(wanted(way), seed=0)).items()}
    folded = way.fold(raw)
    total = sum(
        (tensor * (1 + torch.arange(tensor.numel()).reshape(tensor.shape))).sum()
        for tensor in folded.values()
    )
    total.backward()  # type: ignore[union-attr]
    assert {name for name, tensor in raw.items() if tensor.grad is None or not tensor.grad.any()} == set()


@pytest.mark.parametrize("way", EVERY_WAY, ids=repr)
def test_seeds_draw_networks_and_the_same_seed_the_same_one(way: Parameterisation) -> None:
    first, again, other = (way.start(wanted(way), seed=seed) for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    made = {name for name in first if name.startswith(REPARAM)}
    assert any(not torch.equal(first[name], other[name]) for name in made) or not made


@pytest.mark.parametrize("way", [*SOFT_WAYS[1:], PrefixProjection(HIDDEN, HEADS)], ids=repr)
def test_more_rows_than_the_network_is_wide_start_as_near_as_it_can_come(way: Parameterisation) -> None:
    """No last layer fits exactly then; the fitted one must beat the best constant, by far more than rounding."""
    target = wanted(way, count=60)
    folded = way.fold(way.start(target, seed=0))
    for name in sorted(target.keys() - {"head.0.weight", "head.0.bias"}):
        row = 1 if name.startswith("prefix") else 0
        error = (folded[name] - target[name]).square().sum()
        spread = (target[name] - target[name].mean(dim=row, keepdim=True)).square().sum()
        assert 1e-4 * spread < error < 0.95 * spread, name


@pytest.mark.parametrize("way", EVERY_WAY, ids=repr)
def test_threads_fold_and_learn_as_one_does(way: Parameterisation) -> None:
    raw = {
        name: tensor.requires_grad_()
        for name, tensor in moved(way.start(wanted(way, dtype=torch.float64), seed=0)).items()
    }

    def gradients(scale: float) -> list[Tensor]:
        total = sum((scale * tensor).square().sum() for tensor in way.fold(raw).values())
        return list(torch.autograd.grad(total, list(raw.values())))  # type: ignore[arg-type]

    scales = [1.0 + k for k in range(16)]
    alone = [gradients(scale) for scale in scales]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(gradients, scales))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("network", "kind"), [("mlp", "MLP"), ("lstm", "LSTM")])
def test_a_prompt_encoder_folds_as_pefts_does(network: str, kind: str) -> None:
    way = PromptEncoder(network, HIDDEN)  # type: ignore[arg-type]
    raw = moved(way.start(wanted(way), seed=0))
    theirs = PeftPromptEncoder(
        PromptEncoderConfig(
            num_virtual_tokens=N, token_dim=WIDTH, num_transformer_submodules=1, encoder_hidden_size=HIDDEN,
            encoder_reparameterization_type=kind, encoder_dropout=0.0,
        )
    )  # fmt: skip
    _load(theirs, raw, f"{REPARAM}soft_prompt.", {"lstm.": "lstm_head.", "mlp.": "mlp_head."})
    with torch.no_grad():
        expected = theirs(torch.arange(N)[None])[0]
    assert torch.allclose(way.fold(raw)["soft_prompt"], expected, atol=1e-6)


def test_a_prefix_projection_folds_as_pefts_does() -> None:
    way = PrefixProjection(HIDDEN, HEADS)
    raw = moved(way.start(wanted(way), seed=0))
    folded = way.fold(raw)
    for stack in ("encoder", "cross"):
        theirs = PeftPrefixEncoder(
            PrefixTuningConfig(
                num_virtual_tokens=N, token_dim=HEADS * HEAD_DIM, num_transformer_submodules=1,
                num_attention_heads=HEADS, num_layers=LAYERS, encoder_hidden_size=HIDDEN, prefix_projection=True,
            )
        )  # fmt: skip
        _load(theirs, raw, f"{REPARAM}prefix.{stack}.", {"mlp.": "transform."})
        with torch.no_grad():
            flat = theirs(torch.arange(N))
        # As PEFT's model lays it out for attention: slots 2l and 2l + 1 are layer l's keys and values.
        slots = flat.view(N, 2 * LAYERS, HEADS, HEAD_DIM)
        for layer in range(LAYERS):
            assert torch.allclose(folded[f"prefix.{stack}.key"][layer], slots[:, 2 * layer], atol=1e-6)
            assert torch.allclose(folded[f"prefix.{stack}.value"][layer], slots[:, 2 * layer + 1], atol=1e-6)


def test_a_residual_folds_as_the_papers_layers_do() -> None:
    way = Residual(HIDDEN)
    raw = moved(way.start(wanted(way), seed=0))
    branch = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH), nn.LayerNorm(WIDTH))
    base = f"{REPARAM}soft_prompt."
    renamed = {"mlp.0.": "0.", "mlp.1.": "2.", "norm.": "3."}
    own = {name.removeprefix(base): tensor for name, tensor in raw.items() if name.startswith(base)}
    rows = own.pop("embedding")
    branch.load_state_dict(
        {renamed[name[: name.rindex(".") + 1]] + name.rsplit(".")[-1]: t for name, t in own.items()}
    )
    with torch.no_grad():
        expected = rows + branch(rows)
    assert torch.allclose(way.fold(raw)["soft_prompt"], expected, atol=1e-6)


def test_a_float64_run_starts_from_the_same_networks() -> None:
    for way in (Residual(HIDDEN), PromptEncoder("lstm", HIDDEN)):
        single, double = (
            way.start(wanted(way, dtype=dtype), seed=0) for dtype in (torch.float32, torch.float64)
        )
        for name in single:
            assert torch.allclose(single[name].double(), double[name], atol=1e-4), name


def _load(module: nn.Module, raw: Mapping[str, Tensor], base: str, names: Mapping[str, str]) -> None:
    """Put our tensors in PEFT's module, which counts its activations among the layers: 0, 2, 4 are ours 0, 1, 2."""
    state = {}
    for name, tensor in raw.items():
        if not name.startswith(base):
            continue
        own = name.removeprefix(base)
        if own == "embedding":
            state["embedding.weight"] = tensor
            continue
        ours = next(part for part in names if own.startswith(part))
        rest = own.removeprefix(ours)
        if ours == "mlp.":
            number, part = rest.split(".")
            rest = f"{2 * int(number)}.{part}"
        state[names[ours] + rest] = tensor
    module.load_state_dict(state)
