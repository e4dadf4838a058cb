"""Packed linear layers against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from backbone import UnsupportedBackbone
from backbone.linear import PackedLinear, can_pack, keep_rows_apart, pack_linears
from tests.backbone.families import FAMILIES, tiny
from tests.backbone.prompts import manifest, tensors
from tests.backbone.seq2seq import tiny as two_stacks

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(
    not can_pack(torch.bfloat16, CPU), reason="this CPU does not multiply bfloat16 natively"
)


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 80, bias=bias).bfloat16().requires_grad_(False)


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (1, 300, 48), (2, 3, 48)])
def test_it_equals_the_stock_layer(bias: bool, shape: tuple[int, ...]) -> None:
    stock = layer(bias)
    states = torch.randn(shape).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(stock)(states), stock(states), atol=8e-3, rtol=8e-3)
        # In float32 from the same weights; rounded once, where the stock layer and GELU round twice.
        exact = F.gelu(F.linear(states.float(), stock.weight.float(), stock.bias.float() if bias else None))
        fused = PackedLinear(stock, gelu=True)(states)
        torch.testing.assert_close(fused.float(), exact, atol=4e-3, rtol=8e-3)


@needs_bf16
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row_and_shows(poison: float) -> None:
    states = torch.randn(5, 48).bfloat16()
    clean = PackedLinear(layer(), gelu=True)(states)
    states[2] = poison
    broken = PackedLinear(layer(), gelu=True)(states)
    assert torch.equal(clean[[0, 1, 3, 4]], broken[[0, 1, 3, 4]])
    assert not torch.isfinite(broken[2]).all()


@needs_bf16
@pytest.mark.parametrize("gelu", [True, False])
def test_gradients_are_the_stock_layers(gelu: bool) -> None:
    stock = layer()
    states = torch.randn(6, 48).bfloat16().requires_grad_()
    packed = PackedLinear(stock, gelu=gelu)(states)
    want = F.gelu(stock(states)) if gelu else stock(states)
    assert torch.equal(packed, want)
    (got,) = torch.autograd.grad(packed.sum(), states)
    (expected,) = torch.autograd.grad(want.sum(), states)
    assert torch.equal(got, expected)


@needs_bf16
def test_gelu_moves_in_only_where_it_is_the_exact_one() -> None:
    class Block(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.dense, self.intermediate_act_fn = layer(), ACT2FN[name]

    for name, moved in (("gelu", True), ("gelu_new", False), ("relu", False)):
        block = Block(name)
        assert pack_linears(block) == 1
        assert block.dense.gelu is moved
        assert isinstance(block.intermediate_act_fn, nn.Identity) is moved


@needs_bf16
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_scores_as_with_its_own_layers(family: str) -> None:
    fast = tiny(family, "bfloat16")
    plain = tiny(family, "bfloat16", "eager")
    own = manifest(plain, soft=2)
    texts = ["the film was not very good", "a great warm book", "who"]
    results = []
    for bone in (fast, plain):
        prompt = bone.bind(own, tensors(bone, soft=2, prefix=3 if bone.takes_prefixes else 0))
        with torch.no_grad():
            results.append(torch.stack(bone.forward(bone.row_encoder(own).encode(texts), [prompt] * 3)))
    bound = 0.06 * results[1].abs().max()  # docs/decisions/0006: what bfloat16 moves
    assert (results[0] - results[1]).abs().max() <= bound


@needs_bf16
def test_packed_weights_are_not_given_out_for_training() -> None:
    with pytest.raises(UnsupportedBackbone, match='kernels="off"'):
        tiny("bert", "bfloat16").weights()
    assert tiny("bert", "bfloat16", "eager").weights()
    with pytest.raises(UnsupportedBackbone, match='kernels="off"'):
        two_stacks("t5", "bfloat16").weights()


def test_float32_keeps_its_layers() -> None:
    assert not can_pack(torch.float32, CPU)
    assert "linear" not in tiny("bert").kernels


@pytest.mark.parametrize("width", [5, 15, 48, 100, 312])
@pytest.mark.parametrize("kind", ["linear", "conv1d", pytest.param("packed", marks=needs_bf16)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_of_an_odd_width_are_kept_apart(kind: str, width: int, poison: float) -> None:
    """AMX multiplies 32 numbers of a row at once, and takes what it lacks from the next row."""
    torch.manual_seed(0)
    stock = (Conv1D(64, width) if kind == "conv1d" else nn.Linear(width, 64)).bfloat16().requires_grad_(False)
    model = nn.Sequential(stock)
    assert (pack_linears if kind == "packed" else keep_rows_apart)(model) == 1
    for rows in (3, 18, 40, 257):
        states = torch.randn(rows, width).bfloat16()
        clean = model(states)
        torch.testing.assert_close(clean, stock(states), atol=3e-2, rtol=2e-2)
        states[1::3] = poison
        kept = [at for at in range(rows) if at % 3 != 1]
        assert torch.equal(model(states)[kept], clean[kept])
        assert not torch.isfinite(model(states)[1::3]).all(dim=1).any()
    assert torch.equal(model[0].weight, stock.weight)


@pytest.mark.parametrize("width", [5, 15, 48, 100, 312])
@pytest.mark.parametrize("inner", [64, 312])
@pytest.mark.parametrize("kind", ["linear", "conv1d", pytest.param("packed", marks=needs_bf16)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_gradients_of_rows_of_an_odd_width_are_kept_apart(
    kind: str, inner: int, width: int, poison: float
) -> None:
    """The gradients' rows are as wide as what the layer puts out."""
    torch.manual_seed(0)
    stock = (Conv1D(width, inner) if kind == "conv1d" else nn.Linear(inner, width)).bfloat16()
    stock.requires_grad_(False)
    model = nn.Sequential(stock)
    assert (pack_linears if kind == "packed" else keep_rows_apart)(model) == 1
    for rows in (3, 40, 48, 80, 144, 257):
        states = torch.randn(rows, inner).bfloat16().requires_grad_()
        result, expected = model(states), stock(states)
        torch.testing.assert_close(result, expected, atol=3e-2, rtol=2e-2)
        back = torch.randn(rows, width).bfloat16()
        (clean,) = torch.autograd.grad(result, states, back, retain_graph=True)
        torch.testing.assert_close(
            clean, torch.autograd.grad(expected, states, back)[0], atol=3e-2, rtol=2e-2
        )
        back[1::3] = poison
        (broken,) = torch.autograd.grad(result, states, back)
        kept = [at for at in range(rows) if at % 3 != 1]
        assert torch.equal(broken[kept], clean[kept])
        assert not torch.isfinite(broken[1::3]).all(dim=1).any()


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_padded_layer_that_is_trained_goes_on_with_its_new_weights(kind: str) -> None:
    torch.manual_seed(0)
    stock = (Conv1D(64, 15) if kind == "conv1d" else nn.Linear(15, 64)).bfloat16().requires_grad_(False)
    model, states = nn.Sequential(stock), torch.randn(40, 15).bfloat16()
    assert keep_rows_apart(model) == 1
    weight, plain = model[0].weight.requires_grad_(), stock.weight.requires_grad_()
    (got,) = torch.autograd.grad(model(states).sum(), weight)
    (expected,) = torch.autograd.grad(stock(states).sum(), plain)
    assert torch.equal(got, expected)
    with torch.no_grad():
        weight.add_(0.5)
    torch.testing.assert_close(model(states), model.requires_grad_(False)(states), atol=6e-2, rtol=2e-2)


def test_only_odd_widths_in_bfloat16_are_replaced() -> None:
    assert keep_rows_apart(nn.Sequential(nn.Linear(64, 32).bfloat16())) == 0
    assert keep_rows_apart(nn.Sequential(nn.Linear(64, 5).bfloat16())) == 1
    assert keep_rows_apart(nn.Sequential(nn.Linear(15, 5))) == 0
    model = BertForMaskedLM(
        BertConfig(
            hidden_size=15, num_hidden_layers=1, num_attention_heads=3, intermediate_size=64, vocab_size=40
        )
    ).bfloat16()
    assert keep_rows_apart(model) == 7  # query, key, value, three others, the head's own layer; not the words
    assert type(model.get_output_embeddings()) is nn.Linear
