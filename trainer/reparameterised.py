"""Owns the parameterisations in which a network makes the prompt while it is trained, and is gone when it is served.

    Residual           soft prompt = P + norm(MLP(P))              Razdaibiedina et al. 2023, arXiv 2305.03937
    PromptEncoder      soft prompt = MLP(BiLSTM(E)), or MLP(E)     Liu et al. 2021 (P-Tuning), arXiv 2103.10385
    PrefixProjection   keys and values = MLP(E)                    Li & Liang 2021 (Prefix-Tuning), arXiv 2101.00190

All start at the wanted values: Residual with its branch closed, the others with their last layer solved for them.
What a fresh network would give is noise of another scale than words and real activations have, and training from there
is what makes these methods look bad. Knows the prompt file's shapes; knows no backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.networks import fit_linear, generator_of, linear, lstm, mlp, new_linear, new_lstm
from trainer.parameterisation import REPARAM

_SOFT = f"{REPARAM}soft_prompt"
_PURPOSE = 2  # which of a seed's numbers these networks are drawn from; the starting prompts draw from others


def _like(made: Mapping[str, Tensor], wanted: Tensor) -> dict[str, Tensor]:
    return {name: tensor.to(wanted.device, wanted.dtype) for name, tensor in made.items()}


def _served(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in raw.items() if not name.startswith(REPARAM)}


@dataclass(frozen=True)
class Residual:
    """Soft prompt [n, d] = P + norm(W₂ · relu(W₁ · P + b₁) + b₂), one network for all n rows (section 3).

    `hidden` is the bottleneck: W₁ [hidden, d], W₂ [d, hidden]; norm is a layer norm with gain and bias. The gain starts
    at zero, so the fold starts at P exactly. The paper's own code starts it at one: the branch then adds a vector of
    length √d to every row at once, many times a word's length in today's encoders. Zero in W₂ instead would close the
    branch, too, but the layer norm of a row of zeros multiplies gradients by hundreds.
    """

    hidden: int

    def start(self, wanted: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """P is the wanted soft prompt; the fold equals it."""
        raw = dict(wanted)
        soft = raw.pop("soft_prompt")
        width, generator = soft.shape[1], generator_of(seed, _PURPOSE)
        made = {
            **new_linear(f"{_SOFT}.mlp.0", width, self.hidden, generator),
            **new_linear(f"{_SOFT}.mlp.1", self.hidden, width, generator),
            f"{_SOFT}.norm.weight": torch.zeros(width),
            f"{_SOFT}.norm.bias": torch.zeros(width),
        }
        return raw | {f"{_SOFT}.embedding": soft} | _like(made, soft)

    def fold(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The soft prompt, and all else as it is."""
        rows = raw[f"{_SOFT}.embedding"]
        branch = mlp(raw, f"{_SOFT}.mlp", rows, F.relu)
        gain, bias = raw[f"{_SOFT}.norm.weight"], raw[f"{_SOFT}.norm.bias"]
        return _served(raw) | {"soft_prompt": rows + F.layer_norm(branch, gain.shape, gain, bias)}


@dataclass(frozen=True)
class PromptEncoder:
    """Soft prompt [n, d] = encoder(E) of trainable inputs E [n, d] (section 3.2 of P-Tuning).

    "lstm": a bidirectional LSTM of two layers, `hidden` units each way, then linear, relu, linear; "mlp": three linear
    layers of width `hidden` with relu between them. The same networks as PEFT's PromptEncoder. The last layer is fitted
    to the wanted soft prompt: exact up to rounding for n ≤ 2·hidden ("lstm") or n ≤ hidden ("mlp"), else the nearest.
    """

    network: Literal["lstm", "mlp"]
    hidden: int

    def start(self, wanted: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """E is drawn from N(0, 1), as an embedding layer is; the encoder brings it to the wanted soft prompt."""
        raw = dict(wanted)
        soft = raw.pop("soft_prompt")
        (count, width), generator = soft.shape, generator_of(seed, _PURPOSE)
        rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
        made = {f"{_SOFT}.embedding": rows}
        if self.network == "lstm":
            made |= new_lstm(f"{_SOFT}.lstm", width, self.hidden, generator)
            made |= new_linear(f"{_SOFT}.mlp.0", 2 * self.hidden, 2 * self.hidden, generator)
        else:
            made |= new_linear(f"{_SOFT}.mlp.0", width, self.hidden, generator)
            made |= new_linear(f"{_SOFT}.mlp.1", self.hidden, self.hidden, generator)
        features = F.relu(self._encode(made))
        last = f"{_SOFT}.mlp.{1 if self.network == 'lstm' else 2}"
        return raw | _like(made | fit_linear(last, features, soft), soft)

    def fold(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The soft prompt, and all else as it is."""
        return _served(raw) | {"soft_prompt": self._encode(raw)}

    def _encode(self, raw: Mapping[str, Tensor]) -> Tensor:
        rows = raw[f"{_SOFT}.embedding"]
        if self.network == "lstm":
            rows = lstm(raw, f"{_SOFT}.lstm", rows)
        return mlp(raw, f"{_SOFT}.mlp", rows, F.relu)


@dataclass(frozen=True)
class PrefixProjection:
    """Keys and values of a stack = W₂ · tanh(W₁ · E) of trainable inputs E [n, d] (section 4.3 of Prefix-Tuning).

    d = kv_heads·head_dim; W₁ [hidden, d], W₂ [layers·2·d, hidden], whose rows go by layer, key before value, head: as
    PEFT's PrefixEncoder has them. Each stack (encoder, decoder, cross) has inputs and a network of its own. W₂ is
    fitted to the wanted keys and values: exact up to rounding for n ≤ hidden, else the nearest.
    """

    hidden: int
    kv_heads: int
    decoder_kv_heads: int | None = None  # of an encoder-decoder, whose decoder may have other heads

    def start(self, wanted: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """E is drawn from N(0, 1), as an embedding layer is; the network brings it to the wanted prefix."""
        raw, generator = dict(wanted), generator_of(seed, _PURPOSE)
        for stack in _stacks(wanted, "prefix."):
            keys, values = raw.pop(f"prefix.{stack}.key"), raw.pop(f"prefix.{stack}.value")
            count, width = keys.shape[1], keys.shape[2] * keys.shape[3]
            base = f"{REPARAM}prefix.{stack}"
            rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
            made = {f"{base}.embedding": rows} | new_linear(f"{base}.mlp.0", width, self.hidden, generator)
            features = torch.tanh(linear(made, f"{base}.mlp.0", rows))
            flat = torch.stack([keys, values]).permute(2, 1, 0, 3, 4).reshape(count, -1)
            raw |= _like(made | fit_linear(f"{base}.mlp.1", features, flat), keys)
        return raw

    def fold(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every stack's keys and values, and all else as it is."""
        folded = _served(raw)
        for stack in _stacks(raw, f"{REPARAM}prefix."):
            base = f"{REPARAM}prefix.{stack}"
            rows = raw[f"{base}.embedding"]
            flat = mlp(raw, f"{base}.mlp", rows, torch.tanh)
            count, width = rows.shape
            heads = self.kv_heads if stack == "encoder" else self.decoder_kv_heads or self.kv_heads
            pairs = flat.reshape(count, -1, 2, heads, width // heads).permute(2, 1, 0, 3, 4)
            folded[f"prefix.{stack}.key"], folded[f"prefix.{stack}.value"] = pairs.unbind()
        return folded


def _stacks(tensors: Mapping[str, Tensor], before: str) -> list[str]:
    """The stacks that have a prefix: what follows `before` in the names, in the same order every time."""
    return sorted({name.removeprefix(before).split(".")[0] for name in tensors if name.startswith(before)})
