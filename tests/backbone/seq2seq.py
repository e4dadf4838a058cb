"""Tiny encoder-decoders: width, heads, layers, head width and both stacks' numbers are all different."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from backbone import Backbone, load_backbone
from prompt_store import Manifest
from tests.backbone.families import POSITIONS, WORDS, _checkpoints, byte_level, run_cache
from tests.backbone.prompts import manifest

HIDDEN = 24
_T5 = {
    "d_model": HIDDEN, "d_kv": 5, "num_heads": 3, "num_layers": 4, "num_decoder_layers": 2, "d_ff": 40,
    "relative_attention_num_buckets": 12, "relative_attention_max_distance": 20, "n_positions": POSITIONS,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART = {
    "d_model": HIDDEN, "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_layers": 5,
    "decoder_layers": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 36, "max_position_embeddings": POSITIONS,
    "init_std": 0.25, "decoder_start_token_id": 2, "scale_embedding": True,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", _T5),
    "mt5": (
        "MT5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": ("BartForConditionalGeneration", _BART),
    "mbart": ("MBartForConditionalGeneration", {**_BART, "decoder_start_token_id": None}),
}
# PEFT's prefixes are for decoders that have as many heads as their encoder.
_EVEN = {
    "bart-even": ("BartForConditionalGeneration", {**_BART, "decoder_attention_heads": 3}),
    "bart-deep": (
        "BartForConditionalGeneration",
        {**_BART, "decoder_attention_heads": 3, "encoder_layers": 2, "decoder_layers": 4},
    ),
}
T5S = ("t5", "mt5")
STACKS = ("encoder", "decoder", "cross")


def _unigram() -> hf.PreTrainedTokenizerFast:
    """Words with a ▁ before them, letters without; T5's special tokens and sentinels."""
    pieces = ["▁", *(f"▁{word}" for word in dict.fromkeys(WORDS)), *"abcdefghijklmnopqrstuvwxyz.,?!"]
    scores = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((piece, -1.0 - len(piece) * 0.01) for piece in pieces),
    ]
    core = Tokenizer(models.Unigram(scores, unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    sentinels = [f"<extra_id_{at}>" for at in range(3)]
    core.add_special_tokens(sentinels)
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=sentinels,
    )  # fmt: skip


def _with_language() -> hf.PreTrainedTokenizerFast:
    """mBART's: the language's code stands behind the end of the text."""
    made = byte_level(around=True)
    core = made.backend_tokenizer
    core.add_special_tokens(["en_XX"])
    ids = [(token, core.token_to_id(token)) for token in ("</s>", "en_XX")]
    core.post_processor = processors.TemplateProcessing(
        single="$A </s> en_XX", pair="$A </s> $B </s> en_XX", special_tokens=ids
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        mask_token="<mask>", additional_special_tokens=["en_XX"],
    )  # fmt: skip


@functools.cache
def checkpoint(name: str) -> Path:
    """The folder of a tiny checkpoint; made once in a test run."""
    folder = Path(_checkpoints().name) / name
    tokenizer = (
        _unigram() if name in T5S else _with_language() if name == "mbart" else byte_level(around=True)
    )
    made, config = (FAMILIES | _EVEN)[name]
    model_class: Any = getattr(hf, made)
    torch.manual_seed(sum(map(ord, name)))
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if name not in T5S:
        special["bos_token_id"] = tokenizer.bos_token_id
    model = model_class(model_class.config_class(vocab_size=len(tokenizer), **config, **special))
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "relative_attention_bias" in part:  # a bias that is noticed where it is wrong
                parameter.mul_(8)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def tiny(name: str, dtype: str = "float32") -> Backbone:
    """A tiny encoder-decoder on the CPU."""
    return load_backbone(str(checkpoint(name)), device="cpu", dtype=dtype, cache_dir=run_cache())


@functools.cache
def stock(name: str) -> Any:
    """The same checkpoint as transformers alone runs it."""
    model: Any = hf.AutoModelForSeq2SeqLM.from_pretrained(checkpoint(name), attn_implementation="eager")
    return model.eval()


@functools.cache
def tokenizer(name: str) -> Any:
    """The checkpoint's tokenizer."""
    return hf.AutoTokenizer.from_pretrained(checkpoint(name))


def prefix(bone: Backbone, stacks: tuple[str, ...], length: int, seed: int) -> dict[str, Tensor]:
    """Random keys and values for some of the three stacks."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for stack in stacks:
        shape = bone.shape.stack(stack)
        for kind in ("key", "value"):
            size = (shape.layers, length, shape.kv_heads, shape.head_dim)
            found[f"prefix.{stack}.{kind}"] = torch.randn(size, generator=generator) * 2
    return found


def reading(bone: Backbone, reads: str | None, *, offset: int = 0, **changes: Any) -> Manifest:
    """A linear head on what the decoder says when it reads so; None: on the encoder."""
    if reads is not None:
        changes = {"decoder": {"reads": reads, "position_offset": offset}, "pooling": "last", **changes}
        if reads == "mask":
            changes = {"template": "{text} it was {mask} .", **changes}
    return manifest(bone, **changes)
