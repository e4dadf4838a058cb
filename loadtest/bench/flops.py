"""How many floating-point operations a row costs, from the backbone's configuration.

Owns the formula; a multiplication and an addition count as two, as on every data sheet. Counted are the matrix
products of the layers: embeddings, norms, activations, softmax and heads are left out, padding is never counted.

Linear layers, for each token and layer, with h the hidden size, q = heads · head_dim, k = kv_heads · head_dim and
i the intermediate size:

    2 · (h·q + 2·h·k + q·h + m·h·i)        m = 2, or 3 where the MLP has a gate

Attention, for each row of n tokens after a prefix of p and for each layer (QKᵀ and the weighted sum of V):

    4 · q · n · (n + p)                    a causal model's query sees (n + 1) / 2 tokens on average instead of n
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_GATED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "modernbert"})
_CAUSAL = frozenset({"gpt2", "llama", "mistral", "opt", "qwen2", "qwen3", "gemma"})


@dataclass(frozen=True)
class Shape:
    """What the formula needs of a configuration."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    gated: bool
    causal: bool

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Read a transformers configuration."""
        heads = config.num_attention_heads
        intermediate = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=intermediate or 4 * config.hidden_size,
            gated=config.model_type in _GATED,
            causal=config.model_type in _CAUSAL,
        )

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of one layer's linear layers, in the order in which they run."""
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        into = [(self.hidden, self.intermediate)] * (2 if self.gated else 1)
        return [
            (self.hidden, q), (self.hidden, k), (self.hidden, k), (q, self.hidden), *into,
            (self.intermediate, self.hidden),
        ]  # fmt: skip

    @property
    def linear_per_token(self) -> int:
        """Operations of all linear layers for one token."""
        return 2 * self.layers * sum(a * b for a, b in self.linears())

    def attention(self, tokens: int, prefix: int = 0) -> float:
        """Operations of all layers' attention for one row."""
        seen = (tokens + 1) / 2 if self.causal else tokens
        return 4 * self.layers * self.heads * self.head_dim * tokens * (seen + prefix)

    def rows(self, lengths: Sequence[int], prefix: int = 0) -> float:
        """Operations of rows of these lengths (soft tokens included), each with a prefix of so many tokens."""
        return self.linear_per_token * sum(lengths) + sum(self.attention(n, prefix) for n in lengths)
