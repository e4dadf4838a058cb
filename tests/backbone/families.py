"""Tiny random models of every family, saved as checkpoints, with weights large enough that mistakes show.

Freshly initialised models barely react to their inputs; `initializer_range` is raised so that swapping two prompts
moves logits by at least 0.1 (asserted in test_law.py).
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from backbone import Backbone, load_backbone
from tests.conftest import CACHE

WORDS = (
    "a the this that it was is not very film book food good bad great terrible fine dull warm cold who where "
    "when how many people city order late money back please thanks never always maybe red green blue one two "
    "three . , ? !"
).split()
HIDDEN, HEADS, LAYERS, POSITIONS = 24, 4, 3, 96


@dataclass(frozen=True)
class Family:
    """How a tiny checkpoint of one family is made."""

    name: str
    model: str  # class name of the headed model in transformers
    config: dict[str, Any] = field(default_factory=dict)
    tokens: str = "wordpiece"  # or "bytes"
    biases: bool = False  # random ones, where a model starts them as zeros


_BASE = {
    "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "intermediate_size": 40,
    "max_position_embeddings": POSITIONS, "initializer_range": 0.25,
}  # fmt: skip
_GQA = {**_BASE, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("bert", "BertForMaskedLM", _BASE),
        Family("roberta", "RobertaForMaskedLM", {**_BASE, "max_position_embeddings": POSITIONS + 2}, "bytes"),
        Family(
            "xlm-roberta",
            "XLMRobertaForMaskedLM",
            {**_BASE, "max_position_embeddings": POSITIONS + 2},
            "bytes",
        ),
        Family("electra", "ElectraForMaskedLM", {**_BASE, "embedding_size": 16}),
        Family(
            "distilbert",
            "DistilBertForMaskedLM",
            {
                "dim": HIDDEN,
                "n_heads": HEADS,
                "n_layers": LAYERS,
                "hidden_dim": 40,
                "max_position_embeddings": POSITIONS,
                "initializer_range": 0.25,
            },
            biases=True,
        ),
        # As microsoft/deberta-v3: relative positions in buckets, and no absolute ones.
        Family(
            "deberta-v2",
            "DebertaV2ForMaskedLM",
            {
                **_BASE,
                "relative_attention": True,
                "position_buckets": 8,
                "norm_rel_ebd": "layer_norm",
                "share_att_key": True,
                "pos_att_type": "p2c|c2p",
                "position_biased_input": False,
            },
            biases=True,
        ),
        # As microsoft/deberta-v2-xlarge, and whatever else may differ: a convolution, absolute positions, segments, a
        # language-model head of its own kind.
        Family(
            "deberta-v2-conv",
            "DebertaV2ForMaskedLM",
            {
                **_BASE,
                "relative_attention": True,
                "pos_att_type": ["c2p"],
                "conv_kernel_size": 3,
                "conv_act": "gelu",
                "type_vocab_size": 2,
                "legacy": False,
            },
            biases=True,
        ),
        Family(
            "mpnet", "MPNetForMaskedLM", {**_BASE, "max_position_embeddings": POSITIONS + 2}, "bytes", True
        ),
        Family("albert", "AlbertForMaskedLM", {**_BASE, "embedding_size": 16, "num_hidden_groups": 1}),
        Family(
            "modernbert",
            "ModernBertForMaskedLM",
            {
                **_BASE,
                "local_attention": 8,
                "global_attn_every_n_layers": 3,
                "initializer_cutoff_factor": 3.0,
            },
        ),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            {
                "n_embd": HIDDEN,
                "n_head": HEADS,
                "n_layer": LAYERS,
                "n_positions": POSITIONS,
                "initializer_range": 0.25,
            },
            "bytes",
        ),
        Family("llama", "LlamaForCausalLM", _GQA, "bytes"),
        # Its queries, keys and values have biases.
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            {**_BASE, "num_key_value_heads": 2, "initializer_range": 0.2},
            "bytes",
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            {**_GQA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            "bytes",
        ),
        Family(
            "opt",
            "OPTForCausalLM",
            {
                "hidden_size": HIDDEN,
                "num_attention_heads": HEADS,
                "num_hidden_layers": LAYERS,
                "ffn_dim": 40,
                "max_position_embeddings": POSITIONS,
                "word_embed_proj_dim": 16,
                "init_std": 0.25,
            },
            "bytes",
        ),
    )
}
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3", "opt")
PADDED = ("deberta-v2", "deberta-v2-conv", "mpnet")  # attend in their own way, and take no prefixes
PREFIXED = tuple(name for name in FAMILIES if name not in PADDED)


def wordpiece() -> hf.PreTrainedTokenizerFast:
    """A WordPiece tokenizer over a few words and all letters, with BERT's special tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789'\"-:;()"
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{c}" for c in letters),
    ]
    ids = {token: at for at, token in enumerate(dict.fromkeys(vocabulary))}
    core = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def byte_level(*, around: bool) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE without merges beyond the word list; RoBERTa's special tokens when `around`, else GPT-2's."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: at for at, token in enumerate([*specials, *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for written in (f"Ġ{word}",):
            left = written[0]
            for char in written[1:]:
                if left + char not in ids:
                    ids[left + char] = len(ids)
                    merges.append((left, char))
                left += char
    core = Tokenizer(models.BPE(ids, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if around:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
        )
    else:
        core.post_processor = processors.ByteLevel(trim_offsets=False)
    extra = {"mask_token": "<mask>"} if around else {}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        **extra,
    )


@functools.cache
def _checkpoints() -> tempfile.TemporaryDirectory[str]:
    """Kept alive by the cache, removed when the interpreter ends."""
    return tempfile.TemporaryDirectory(prefix="promptmux-tiny-")


def run_cache() -> Path:
    """Where the whole test run keeps what `load_backbone` does: one compilation serves all of its processes."""
    return Path(os.environ[CACHE]) / "promptmux"


@functools.cache
def checkpoint(name: str) -> Path:
    """The folder of a tiny checkpoint; made once in a test process."""
    family = FAMILIES[name]
    folder = Path(_checkpoints().name) / name
    tokenizer = wordpiece() if family.tokens == "wordpiece" else byte_level(around=name not in CAUSAL)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    special["eos_token_id"] = tokenizer.eos_token_id
    if name == "modernbert":
        special |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    model_class = getattr(hf, family.model)
    torch.manual_seed(sum(map(ord, name)))
    config = model_class.config_class(vocab_size=len(tokenizer), **family.config, **special)
    model = model_class(config)
    if family.biases:
        for weight in model.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def tiny(name: str, dtype: str = "float32", attention: str = "auto") -> Backbone:
    """A tiny backbone of a family, on the CPU; `attention` is "compiled", "eager", or compiled where it can be."""
    kernels = {"auto": "auto", "compiled": "required", "eager": "off"}[attention]
    return load_backbone(
        str(checkpoint(name)), device="cpu", dtype=dtype, cache_dir=run_cache(), kernels=kernels
    )


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")),
    reason="NO C++ COMPILER: the compiled attention is not tested on this machine",
)
# Both attentions as parameters of a test.
BOTH = [pytest.param("compiled", marks=needs_compiler), "eager"]
# Every family with every attention that it can have: the padded ones have their own alone.
WAYS = [pytest.param(family, "compiled", marks=needs_compiler) for family in PREFIXED] + [
    pytest.param(family, "eager") for family in FAMILIES
]
