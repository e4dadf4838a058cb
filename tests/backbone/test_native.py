"""The compiled attention and its gradients against attention written out in float64, and what it must not hide."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from backbone.compiler import load_native
from backbone.native import NativeAttention, NativeRows, PrefixAddresses, Reach, vectors_of
from tests.backbone.families import needs_compiler, run_cache

LENGTHS = (1, 2, 5, 16, 17, 33, 64, 3)
ALL = Reach(causal=False, window=None, scaling=None)


@pytest.fixture(scope="module")
def compiled() -> Callable[[int], NativeAttention]:
    """The attention for heads of a width; each is compiled once."""
    return functools.cache(lambda width: load_native(run_cache() / "kernels", 16 * vectors_of(width)))


@pytest.fixture
def three_threads() -> Iterator[None]:
    """As many as the attention may use for one long row, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def states(heads: int, tokens: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    """[1, heads, tokens, width] as models hand it over: a transposed view."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, tokens, heads, width, generator=generator).to(dtype).transpose(1, 2)


def reference(
    q: Tensor, k: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor] | None, *, causal: bool, window: int | None
) -> Tensor:
    """One row: q [heads, L, width], k and v [kv_heads, L, width], prefix [P, kv_heads, width] → [L, heads, width]."""
    q, k, v = q.double(), k.double(), v.double()
    length = q.shape[1]
    front = 0
    if prefix is not None:
        front = len(prefix[0])
        k = torch.cat([prefix[0].double().transpose(0, 1), k], dim=1)
        v = torch.cat([prefix[1].double().transpose(0, 1), v], dim=1)
    k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen &= distance.abs() < window
    seen = torch.cat([torch.ones(length, front, dtype=torch.bool), seen], dim=1)
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 4), (True, 7)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(3, 3, 6), (4, 2, 16), (2, 2, 32), (6, 1, 40), (2, 2, 64), (2, 1, 128)]
)
def test_it_equals_attention_written_out(
    compiled: Callable[[int], NativeAttention],
    heads: int,
    kv_heads: int,
    width: int,
    causal: bool,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    tokens = sum(LENGTHS)
    q = states(heads, tokens, width, dtype, 0)
    k, v = (states(kv_heads, tokens, width, dtype, seed) for seed in (1, 2))
    generator = torch.Generator().manual_seed(3)
    # Two layers, of which the second is asked for; every other row has a prefix, all of different lengths.
    prefixes = [
        torch.randn(2, 2, 3 + 5 * row, kv_heads, width, generator=generator).to(dtype) if row % 2 else None
        for row in range(len(LENGTHS))
    ]
    addresses = [
        PrefixAddresses() if p is None else PrefixAddresses.of(p[0].unbind(), p[1].unbind()) for p in prefixes
    ]
    rows = NativeRows(LENGTHS, addresses, [0] * len(LENGTHS))
    got = compiled(width)(q, k, v, rows, 1, Reach(causal, window, None))[0]
    assert got.dtype == dtype
    for row, prefix in enumerate(prefixes):
        own = slice(int(rows.starts[row]), int(rows.starts[row + 1]))
        layer = None if prefix is None else (prefix[0, 1], prefix[1, 1])
        want = reference(q[0, :, own], k[0, :, own], v[0, :, own], layer, causal=causal, window=window)
        tolerance = {"atol": 2e-6, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 4e-3, "rtol": 8e-3}
        torch.testing.assert_close(got[own].double(), want, **tolerance)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["query", "key", "value", "prefix"])
def test_what_is_not_finite_stays_in_its_row_and_shows(
    compiled: Callable[[int], NativeAttention], where: str, poison: float, dtype: torch.dtype
) -> None:
    attend, lengths = compiled(32), (9, 9, 9)
    q, k, v = (states(2, 27, 32, dtype, seed) for seed in range(3))
    prefix = torch.randn(2, 1, 4, 2, 32, generator=torch.Generator().manual_seed(4)).to(dtype)
    clean = attend(q, k, v, NativeRows(lengths, [PrefixAddresses()] * 3, [0] * 3), 0, ALL)
    broken = {"query": q, "key": k, "value": v}
    addresses = [PrefixAddresses()] * 3
    if where == "prefix":
        prefix[:] = poison
        addresses[1] = PrefixAddresses.of(prefix[0].unbind(), prefix[1].unbind())
    else:
        broken[where] = broken[where].clone()
        broken[where][:, :, 12] = poison
    rows = NativeRows(lengths, addresses, [0] * 3)
    got = attend(*broken.values(), rows, 0, ALL)
    for own in (slice(0, 9), slice(18, 27)):
        assert torch.equal(got[:, own], clean[:, own])
    if not (
        where == "key" and poison == -float("inf")
    ):  # q·(-inf) may be -inf or +inf: some queries never look there
        assert not torch.isfinite(got[:, 9:18]).all()


@needs_compiler
@pytest.mark.usefixtures("three_threads")
def test_threads_and_strides_change_nothing(compiled: Callable[[int], NativeAttention]) -> None:
    attend, lengths = compiled(32), (300, 200)
    q, k, v = (states(4, 500, 32, torch.float32, seed) for seed in range(3))
    rows = NativeRows(lengths, [PrefixAddresses()] * 2, [0] * 2)
    reach = Reach(True, None, 0.2)
    one = attend(q, k, v, rows, 0, reach)
    rows.products = 1 << 40  # worth threads
    assert torch.equal(one, attend(q, k, v, rows, 0, reach))
    packed = [x.contiguous() for x in (q, k, v)]  # [heads, T] in memory, as rotary models hand it over
    assert torch.equal(one, attend(*packed, rows, 0, reach))
    spread = [torch.stack([x, x], dim=-1)[..., 0] for x in (q, k, v)]  # a last dimension with gaps is copied
    assert torch.equal(one, attend(*spread, rows, 0, reach))


@needs_compiler
def test_misfits_are_refused(compiled: Callable[[int], NativeAttention]) -> None:
    attend = compiled(32)
    assert attend.takes(torch.bfloat16, 32)
    assert not attend.takes(torch.float16, 32)
    assert not attend.takes(torch.float32, 48)

    def run(
        query: Tensor, key: Tensor, value: Tensor, reach: Reach = ALL, prefix: Tensor | None = None
    ) -> None:
        address = (
            PrefixAddresses() if prefix is None else PrefixAddresses.of(prefix.unbind(), prefix.unbind())
        )
        attend(query, key, value, NativeRows([4], [address], [0]), 0, reach)

    def of(heads: int = 2, tokens: int = 4, width: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
        return states(heads, tokens, width, dtype, 0)

    run(of(), of(), of())
    for misfit in (
        (of(tokens=5), of(tokens=5), of(tokens=5)),
        (of(), of(tokens=3), of()),
        (of(), of(), of(width=16)),
        (of(), of(width=16), of(width=16)),
        (of(), of(dtype=torch.bfloat16), of()),
        (of(3), of(2), of(2)),
        (of(width=64), of(width=64), of(width=64)),
        tuple(torch.cat([of(), of()]) for _ in range(3)),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            run(*misfit)
    for prefix in (torch.zeros(1, 3, 2, 16), torch.zeros(1, 3, 1, 32), torch.zeros(1, 3, 2, 32).bfloat16()):
        with pytest.raises(ValueError, match="prefixes of"):
            run(of(), of(), of(), prefix=prefix)
    with pytest.raises(ValueError, match="window"):
        run(of(), of(), of(), Reach(causal=False, window=0, scaling=None))


def test_a_prefix_in_pieces_has_no_addresses() -> None:
    whole = torch.zeros(3, 4, 2, 8)
    assert PrefixAddresses.of(whole.unbind(), whole.unbind()).length == 4
    assert PrefixAddresses.of((), ()) == PrefixAddresses()
    with pytest.raises(ValueError, match="contiguous"):
        PrefixAddresses.of([torch.zeros(4, 2, 8), torch.zeros(4, 2, 8)], whole.unbind())


def test_rows_find_their_layer() -> None:
    rows = NativeRows([2, 3], [PrefixAddresses(4, 1000, 10, 2000, 20), PrefixAddresses()], [0, 4])
    keys, values = rows.of_layer(3)
    assert keys.tolist() == [1030, 0]
    assert values.tolist() == [2060, 0]
    assert rows.starts.tolist() == [0, 2, 5]
    assert rows.products == 2 * 6 + 3 * 3
    assert rows.prefix_lengths.dtype == np.int64


@needs_compiler
@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 4), (True, 7)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(3, 3, 6), (4, 2, 16), (6, 1, 40), (2, 2, 64), (2, 1, 128)]
)
def test_its_gradients_are_those_of_attention_written_out(
    compiled: Callable[[int], NativeAttention],
    heads: int,
    kv_heads: int,
    width: int,
    causal: bool,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    tokens = sum(LENGTHS)
    q = states(heads, tokens, width, dtype, 0).requires_grad_()
    k, v = (states(kv_heads, tokens, width, dtype, seed).requires_grad_() for seed in (1, 2))
    generator = torch.Generator().manual_seed(3)
    # Three tasks with prefixes of 4, 0 and 9 tokens; rows of one task share, and their gradients add up.
    spans = [((0, 4), (4, 0), (4, 9))[row % 3] for row in range(len(LENGTHS))]
    pk, pv = (
        torch.randn(13, kv_heads, width, generator=generator).to(dtype).requires_grad_() for _ in range(2)
    )
    rows = NativeRows(
        LENGTHS, [PrefixAddresses(length) for _, length in spans], [start for start, _ in spans]
    )
    leaves = (q, k, v, pk, pv)
    got = compiled(width).learn(*leaves, rows, Reach(causal, window, None))
    want = torch.cat(
        [
            reference(
                q[0, :, own],
                k[0, :, own],
                v[0, :, own],
                (pk[start : start + length], pv[start : start + length]),
                causal=causal,
                window=window,
            )
            for (start, length), own in (
                (span, slice(int(rows.starts[row]), int(rows.starts[row + 1])))
                for row, span in enumerate(spans)
            )
        ]
    )
    tolerance = {"atol": 2e-6, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 4e-3, "rtol": 8e-3}
    torch.testing.assert_close(got[0].double(), want, **tolerance)
    weights = torch.randn(want.shape, generator=generator)
    made = torch.autograd.grad((got[0].float() * weights).sum(), leaves)
    expected = torch.autograd.grad((want * weights).sum(), leaves)
    bound = {"atol": 1e-5, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 3e-2, "rtol": 3e-2}
    for own, other, leaf in zip(made, expected, leaves, strict=True):
        assert own.shape == leaf.shape
        assert own.dtype == leaf.dtype
        torch.testing.assert_close(own.double(), other.double(), **bound)
    # Several threads take heads apart, never a prefix's rows: nothing may change, not even a bit.
    rows.products = 1 << 40
    again = torch.autograd.grad(
        (compiled(width).learn(*leaves, rows, Reach(causal, window, None))[0].float() * weights).sum(), leaves
    )
    for own, other in zip(made, again, strict=True):
        assert torch.equal(own, other)
