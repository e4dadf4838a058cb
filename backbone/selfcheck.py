"""What a model is tried out with when it is loaded.

Owns the checks of a family that we have not tested (rows run together must score as each row alone, a prefix must
change its own row where the family takes one, and the language-model head must score as the stock model's) and the
batches on which a recorded model is compared. Knows nothing of where models come from.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backbone.errors import UnsupportedBackbone
from backbone.family import bare_manifest
from backbone.heads import VerbalizerWords
from backbone.model import Backbone
from backbone.prompts import DevicePrompt
from backbone.rows import Row, text_row

TESTED_FAMILIES = frozenset({
    "albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "mbart", "modernbert", "mpnet",
    "mt5", "opt", "qwen2", "qwen3", "roberta", "t5", "xlm-roberta",
})  # fmt: skip


_LONG_LINE = 600  # tokens
_WORDS = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class StockLogits:
    """The stock model's logits [words], float32, of some words of the vocabulary behind these tokens."""

    tokens: list[int]
    words: list[int]
    logits: Tensor


# What a model raises whose parts are not where those of other families are.
OTHERWISE_BUILT = (AttributeError, TypeError, KeyError)


def built_otherwise(name: str, error: Exception) -> UnsupportedBackbone:
    """What to say of a model that raised one of these: to be raised from `error`."""
    return UnsupportedBackbone(
        f"{name} cannot be served: its family is built otherwise than those that can (docs/guides/backbones.md; "
        f"{type(error).__name__}: {error})"
    )


@torch.inference_mode()
def check_packing(backbone: Backbone) -> None:
    """Refuse a backbone whose rows see each other or the places padded for them, or whose prefixes are ignored.

    Raises:
        UnsupportedBackbone: with the reason.

    """
    bare, prefixed = _prompts(backbone)
    rows = _rows(backbone, (5, 9, 3))
    try:
        mixed = backbone.features(rows, [bare, prefixed, bare])
        alone = torch.cat(
            [backbone.features([r], [p]) for r, p in zip(rows, (bare, prefixed, bare), strict=True)]
        )
        plain = backbone.features([rows[1]], [bare])
    except UnsupportedBackbone:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnsupportedBackbone(f"{backbone.name} cannot run packed rows: {error}") from error
    except OTHERWISE_BUILT as error:
        raise built_otherwise(backbone.name, error) from error
    tolerance = _tolerance(backbone)
    scale = alone.abs().max().clamp(min=1e-6)
    if not torch.isfinite(alone).all() or ((mixed - alone).abs().max() / scale) > tolerance:
        raise UnsupportedBackbone(f"{backbone.name}: rows of one batch influence each other in this family")
    if backbone.takes_prefixes and torch.allclose(plain, alone[1:2], atol=1e-6):
        raise UnsupportedBackbone(f"{backbone.name}: this family ignores prefixes")


@torch.no_grad()  # what a model keeps of its first forward may be trained through later
def check_runs(backbone: Backbone) -> None:
    """Run one row, so that what no row can be run on is refused when it is loaded and not at each request.

    Raises:
        UnsupportedBackbone: with the reason.

    """
    bare, _ = _prompts(backbone)
    try:
        backbone.features(_rows(backbone, (3,)), [bare])
    except UnsupportedBackbone:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnsupportedBackbone(f"{backbone.name} cannot run packed rows: {error}") from error
    except OTHERWISE_BUILT as error:
        raise built_otherwise(backbone.name, error) from error


@torch.inference_mode()
def stock_logits(model: Any, special_ids: Collection[int]) -> StockLogits | None:
    """What the headed stock model says behind a few tokens; None where it has no such head or cannot be asked.

    Ask before a `Backbone` is made of it, which takes its attention and its head apart.
    """
    try:
        size = model.get_input_embeddings().num_embeddings
        ids = [i for i in range(size) if i not in special_ids]
        # Words from all over the vocabulary.
        words, tokens = ids[:: max(1, len(ids) // _WORDS)], ids[:: max(1, len(ids) // 5)][:5]
        logits = model(input_ids=torch.tensor([tokens], device=model.device)).logits[0, -1]
        return StockLogits(tokens, words, logits[words].float().cpu())
    except Exception as error:  # whatever an unknown family does: it is served without verbalizers
        _log.info("%s: its language-model head cannot be asked: %s", model.config.model_type, error)
        return None


@torch.inference_mode()
def check_lm_head(backbone: Backbone, stock: StockLogits | None) -> None:
    """Take the language-model head away where it does not score as the stock model did, and log it.

    Some families scale their logits, cap them, or do more behind the output embedding than is known here.
    """
    if not backbone.has_lm_head:
        return
    if stock is not None:
        row, (bare, _) = text_row(stock.tokens), _prompts(backbone)
        row = replace(row, spans=((len(row) - 1, len(row)),))
        ids = torch.tensor(stock.words, device=backbone.device)
        head = VerbalizerWords(ids, (1,) * len(stock.words), "mean")
        with contextlib.suppress(RuntimeError):  # a head of more parts than are known here does not fit them
            (own,) = backbone.forward([row], [replace(bare, head=head)])
            furthest = (own.float().cpu() - stock.logits).abs().max() / stock.logits.abs().max().clamp(
                min=1e-6
            )
            if furthest <= _tolerance(backbone):  # not where it is NaN
                return
    backbone.do_without_lm_head()
    _log.warning(
        "%s: verbalizers are refused here: its language-model head does not score as the stock model does "
        "(other heads work)",
        backbone.name,
    )


def samples(backbone: Backbone, *, thorough: bool) -> list[tuple[list[Row], list[DevicePrompt]]]:
    """Batches on which a recorded model is compared with the stock one: lengths, prefixes, segments, last positions.

    `thorough` adds a long line, for families that we have not tested. Lines differ in length also where they are filled
    up (`encoder.spare`).
    """
    bare, prefixed = _prompts(backbone)
    longest = min(9, backbone.max_positions)
    at_the_end = replace(prefixed, position_offset=backbone.max_positions - longest)
    lone, *pairs = _rows(backbone, (1, longest, 4, longest, longest))
    made = [
        (_rows(backbone, (5, 3)), [bare, prefixed]),
        ([lone], [bare]),
        ([replace(row, second=2) for row in pairs], [at_the_end, prefixed, prefixed, prefixed]),
    ]
    if thorough:  # a line longer than any row: some models look at its length
        made.append(
            (_rows(backbone, [longest] * (_LONG_LINE // longest)), [prefixed] * (_LONG_LINE // longest))
        )
    return made


def _tolerance(backbone: Backbone) -> float:
    return 1e-3 if backbone.dtype is torch.float32 else 5e-2


def _prompts(backbone: Backbone) -> tuple[DevicePrompt, DevicePrompt]:
    """One without anything, and one with a prefix that differs from layer to layer, or another without anything."""
    shape = backbone.shape
    tensors = {"verbalizer.label_embeddings": torch.zeros(2, shape.hidden_size)}
    manifest = bare_manifest(shape, max_tokens=min(backbone.max_positions, 64))
    bare = backbone.bind(manifest, tensors)
    size = (shape.layers, 2, shape.kv_heads, shape.head_dim)
    generator = torch.Generator().manual_seed(0)
    for kind in ("key", "value") if backbone.takes_prefixes else ():
        tensors[f"prefix.{backbone.prefix_stack}.{kind}"] = torch.randn(size, generator=generator)
    return bare, backbone.bind(manifest, tensors)


def _rows(backbone: Backbone, lengths: Sequence[int]) -> list[Row]:
    ids = [i for i in range(backbone.tokenizer.vocab_size) if i not in backbone.tokenizer.special_ids]
    return [text_row([ids[(at + i) % len(ids)] for i in range(length)]) for at, length in enumerate(lengths)]
