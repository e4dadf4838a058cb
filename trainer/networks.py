"""Owns the small networks that make a prompt while it is trained: named tensors in, tensors out. Knows no prompt.

Each is a pure function of a dict of tensors, so that several threads may run it at once, and any dtype will do. Fresh
weights are drawn as torch's own layers draw them: uniform, within one over the square root of what comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]
LSTM_LAYERS = 2


def generator_of(seed: int, purpose: int) -> torch.Generator:
    """A generator for one purpose: two purposes of one seed draw unrelated numbers."""
    return torch.Generator().manual_seed(int(np.random.default_rng([seed, purpose]).integers(2**62)))


def uniform(shape: Sequence[int], bound: float, generator: torch.Generator) -> Tensor:
    """Drawn in float64, so that a float32 and a float64 run start from the same numbers."""
    drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return drawn * (2 * bound) - bound


def new_linear(name: str, inputs: int, outputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """`{name}.weight` [outputs, inputs] and `{name}.bias` [outputs]."""
    bound = inputs**-0.5
    return {
        f"{name}.weight": uniform((outputs, inputs), bound, generator),
        f"{name}.bias": uniform((outputs,), bound, generator),
    }


def linear(raw: Tensors, name: str, x: Tensor) -> Tensor:
    """[n, inputs] → [n, outputs]."""
    return F.linear(x, raw[f"{name}.weight"], raw[f"{name}.bias"])


def mlp(raw: Tensors, name: str, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The layers `{name}.0`, `{name}.1`, … one after another, with `activation` between them."""
    depth = sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in raw)
    for at in range(depth):
        x = linear(raw, f"{name}.{at}", x if at == 0 else activation(x))
    return x


def _lstm_names(name: str) -> list[str]:
    """In the order in which torch's kernel takes them."""
    return [
        f"{name}.{part}_l{layer}{direction}"
        for layer in range(LSTM_LAYERS)
        for direction in ("", "_reverse")
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]


def new_lstm(name: str, inputs: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A bidirectional LSTM of two layers, `hidden` units in each direction; its tensors are named as torch's."""
    made: dict[str, Tensor] = {}
    for whole in _lstm_names(name):
        part, layer = whole.removeprefix(f"{name}.").removesuffix("_reverse").rsplit("_l", 1)
        width = {"weight_ih": inputs if layer == "0" else 2 * hidden, "weight_hh": hidden}.get(part)
        shape = (4 * hidden,) if width is None else (4 * hidden, width)
        made[whole] = uniform(shape, hidden**-0.5, generator)
    return made


def lstm(raw: Tensors, name: str, x: Tensor) -> Tensor:
    """[n, inputs] → [n, 2·hidden]: the states of both directions at each place."""
    hidden = raw[f"{name}.weight_hh_l0"].shape[1]
    zero = x.new_zeros(2 * LSTM_LAYERS, 1, hidden)
    weights = [raw[whole] for whole in _lstm_names(name)]
    # Its own training mode is what cuDNN's gradients want; there is no dropout that it would switch on.
    output, _, _ = torch.lstm(x[None], (zero, zero), weights, True, LSTM_LAYERS, 0.0, True, True, True)
    return output[0]


def fit_linear(name: str, features: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """The layer that takes `features` [n, h] nearest to `wanted` [n, outputs], by least squares; float64.

    Of all such layers the one with the smallest weights, so that training starts from a gentle slope. Exact where the
    features are independent but for their mean, which random ones are for n ≤ h + 1.
    """
    features, wanted = features.double().cpu(), wanted.double().cpu()
    centre, mean = features.mean(dim=0), wanted.mean(dim=0)
    solution = torch.linalg.lstsq(features - centre, wanted - mean, driver="gelsd").solution
    return {f"{name}.weight": solution.T.contiguous(), f"{name}.bias": mean - centre @ solution}
