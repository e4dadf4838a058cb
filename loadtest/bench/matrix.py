"""The machine's own matrix rate: products of given shapes, as fast as this machine's libraries run them.

Owns the ways in which a product can be run (all cores in one product or one product for each core, weights as they
are or laid out beforehand) and the choice of the fastest. Knows nothing of models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Product = tuple[int, int, int]  # rows, in, out


@dataclass(frozen=True)
class Way:
    """One way to run some products again and again; `run` returns seconds for 10¹² operations."""

    name: str
    run: Callable[[], float]


def ways(
    products: Sequence[Product], dtype: torch.dtype, device: torch.device, *, seconds: float
) -> list[Way]:
    """Every way to run these products on this device; each run takes about `seconds`."""
    if device.type != "cpu":
        once = _chain(products, dtype, device, prepack=False)
        return [Way("one stream", _timed([once], products, seconds, device))]
    cores = torch.get_num_threads()
    found = []
    for prepack in (False, True):
        how = "weights laid out beforehand" if prepack else "weights as they are"
        share = [(max(1, rows // cores), i, o) for rows, i, o in products]
        try:
            together = [_chain(products, dtype, device, prepack=prepack)]
            apart = [_chain(share, dtype, device, prepack=prepack) for _ in range(cores)]
            for once in (*together, *apart):
                once()
        except (AttributeError, RuntimeError):
            continue  # this build of torch cannot lay weights of this dtype out
        found.append(Way(f"all cores in one product, {how}", _timed(together, products, seconds, device)))
        if cores > 1:
            found.append(Way(f"one product for each core, {how}", _timed(apart, share, seconds, device)))
    return found


def operations(products: Sequence[Product]) -> float:
    """Floating-point operations; a multiplication and an addition are two."""
    return float(sum(2 * rows * i * o for rows, i, o in products))


def _chain(
    products: Sequence[Product], dtype: torch.dtype, device: torch.device, *, prepack: bool
) -> Callable[[], None]:
    """All products once, each with weights of its own, as a model has them."""
    inputs: dict[tuple[int, int], Tensor] = {}
    for rows, i, _ in products:
        inputs.setdefault((rows, i), torch.randn(rows, i, device=device, dtype=dtype))
    weights = [torch.randn(o, i, device=device, dtype=dtype) for _, i, o in products]
    multiply: Callable[[Tensor, Any], Tensor] = torch.nn.functional.linear
    if prepack:
        mkldnn: Any = torch.ops.mkldnn
        weights = [
            mkldnn._reorder_linear_weight(weight.to_mkldnn(), rows)
            for weight, (rows, _, _) in zip(weights, products, strict=True)
        ]

        def multiply(x: Tensor, weight: Any) -> Tensor:
            product: Tensor = mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            return product

    steps = [(inputs[rows, i], weight) for (rows, i, _), weight in zip(products, weights, strict=True)]

    def once() -> None:
        with torch.inference_mode():
            for x, weight in steps:
                multiply(x, weight)

    return once


def _timed(
    chains: Sequence[Callable[[], None]], products: Sequence[Product], seconds: float, device: torch.device
) -> Callable[[], float]:
    """Run the chains side by side, each in a thread of its own if there are several, as often as fits in `seconds`."""
    threads = ThreadPoolExecutor(len(chains), initializer=_one_core) if len(chains) > 1 else None
    per_pass = operations(products) * len(chains) / 1e12

    def passes(times: int) -> float:
        began = time.perf_counter()
        if threads is None:
            _repeat(chains[0], times)
        else:
            for done in [threads.submit(_repeat, chain, times) for chain in chains]:
                done.result()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    def run() -> float:
        passes(1)
        times = max(1, math.ceil(seconds / max(passes(1), 1e-6)))
        return passes(times) / (times * per_pass)

    return run


def _repeat(chain: Callable[[], None], times: int) -> None:
    for _ in range(times):
        chain()


def _one_core() -> None:
    torch.set_num_threads(1)
