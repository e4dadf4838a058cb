"""Our rows against independent code: stock transformers for bare rows, PEFT for soft prompts and prefixes."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.backbone.families import CAUSAL, FAMILIES, HEADS, HIDDEN, LAYERS, checkpoint, tiny
from tests.backbone.prompts import manifest, tensors

TEXTS = (
    "the film was not very good",
    "a great warm book",
    "who",
    "where is the order ? thanks , please never late",
)
EXACT = {"atol": 1e-5, "rtol": 1e-5}
PEFT_SOFT = (
    "bert", "roberta", "xlm-roberta", "electra", "albert", "distilbert", "deberta-v2", "mpnet", "gpt2", "llama",
    "qwen2", "qwen3", "opt",
)  # fmt: skip
# PEFT hands a prefix over as a cache, which other encoders do not take.
PEFT_PREFIX = ("bert", "roberta", "xlm-roberta", "gpt2", "llama", "qwen2", "opt")
VIRTUAL = 5


def _head_tensors(layers: list[torch.nn.Linear]) -> dict[str, Tensor]:
    found = {}
    for at, layer in enumerate(layers):
        found[f"head.{at}.weight"] = layer.weight.detach().clone()
        if layer.bias is not None:
            found[f"head.{at}.bias"] = layer.bias.detach().clone()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_rows_equal_the_stock_model(family: str) -> None:
    bone = tiny(family)
    stock = hf.AutoModel.from_pretrained(checkpoint(family)).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint(family))
    own = manifest(bone, pooling="last")
    prompt = bone.bind(own, tensors(bone))
    got = bone.features(bone.row_encoder(own).encode(TEXTS), [prompt] * len(TEXTS))
    for text, features in zip(TEXTS, got, strict=True):
        with torch.no_grad():
            want = stock(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
        torch.testing.assert_close(features, want, **EXACT)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in CAUSAL])
def test_pairs_equal_the_stock_model(family: str) -> None:
    bone = tiny(family)
    stock = hf.AutoModel.from_pretrained(checkpoint(family)).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint(family))
    own = manifest(bone, template="{text} {text_pair}", pooling="cls")
    got = bone.features(
        bone.row_encoder(own).encode(TEXTS[:2], TEXTS[2:]), [bone.bind(own, tensors(bone))] * 2
    )
    for text, pair, features in zip(TEXTS[:2], TEXTS[2:], got, strict=True):
        with torch.no_grad():
            segments = family not in ("modernbert", "distilbert", "mpnet")
            encoded = tokenizer(text, pair, return_tensors="pt", return_token_type_ids=segments)
            want = stock(**encoded).last_hidden_state[0, 0]
        torch.testing.assert_close(features, want, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_verbalizer_equals_the_stock_language_model_head(family: str) -> None:
    bone = tiny(family)
    auto: Any = hf.AutoModelForCausalLM if family in CAUSAL else hf.AutoModelForMaskedLM
    stock = auto.from_pretrained(checkpoint(family)).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint(family))
    template = "{text} it was {mask}" + ("" if family in CAUSAL else " .")
    words = (("bad", "terrible"), ("great",))
    own = manifest(bone, template=template, pooling="mask", head={"type": "verbalizer", "words": words})
    got = bone.forward(bone.row_encoder(own).encode(TEXTS), [bone.bind(own, {})] * len(TEXTS))
    space = FAMILIES[family].tokens == "bytes"
    ids = [tokenizer.convert_tokens_to_ids([("Ġ" if space else "") + w for w in group]) for group in words]
    for text, logits in zip(TEXTS, got, strict=True):
        written = f"{text} it was" + (
            "" if family in CAUSAL else f"{'' if space else ' '}{tokenizer.mask_token} ."
        )
        encoded = tokenizer(written, return_tensors="pt")
        at = -1 if family in CAUSAL else encoded.input_ids[0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            scores = stock(**encoded).logits[0, at]
        torch.testing.assert_close(logits, torch.stack([scores[i].mean() for i in ids]), **EXACT)


def _classifier(family: str) -> Any:
    """A sequence classifier on the tiny checkpoint, with a head large enough to matter."""
    torch.manual_seed(7)
    model = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint(family), num_labels=3).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "pre_classifier", "score", "pooler", "bert.pooler")):
            torch.nn.init.normal_(parameter, std=0.5)
    model.config.pad_token_id = 1
    return model


def _head_of(family: str, model: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The classifier's own head as layers of a prompt file."""
    if family == "bert":
        layers, activations = [model.bert.pooler.dense, model.classifier], ["tanh", None]
    elif family == "albert":
        layers, activations = [model.albert.pooler, model.classifier], ["tanh", None]
    elif family == "electra":
        layers, activations = [model.classifier.dense, model.classifier.out_proj], ["gelu", None]
    elif family in ("roberta", "xlm-roberta", "mpnet"):
        layers, activations = [model.classifier.dense, model.classifier.out_proj], ["tanh", None]
    elif family == "distilbert":
        layers, activations = [model.pre_classifier, model.classifier], ["relu", None]
    elif family == "deberta-v2":
        layers, activations = [model.pooler.dense, model.classifier], ["gelu", None]
    else:
        layers, activations = [model.score], [None]
    described = [
        {
            "in_features": x.in_features,
            "out_features": x.out_features,
            "bias": x.bias is not None,
            "activation": a,
        }
        for x, a in zip(layers, activations, strict=True)
    ]
    return described, _head_tensors(layers)


def _peft_logits(family: str, wrapped: Any, text: str) -> Tensor:
    tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint(family))
    with torch.no_grad():
        encoded = tokenizer(text, return_tensors="pt")
        return wrapped(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits[0]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", PEFT_SOFT)
def test_soft_prompt_rows_equal_peft(family: str) -> None:
    bone = tiny(family)
    # PEFT would take the hidden size for the embedding's width, and does not know DistilBERT's names for sizes.
    config = peft.PromptTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL, token_dim=bone.shape.embedding_width,
        num_layers=LAYERS, num_attention_heads=HEADS,
    )  # fmt: skip
    wrapped = peft.get_peft_model(_classifier(family), config).eval()
    soft = torch.randn(VIRTUAL, bone.shape.embedding_width, generator=torch.Generator().manual_seed(3))
    wrapped.prompt_encoder["default"].embedding.weight.data.copy_(soft)
    head, weights = _head_of(family, _head_model(wrapped))
    # PEFT hands [prompt; CLS; text] to an unmodified head, which pools place 0: the first virtual token.
    own = manifest(
        bone, soft=VIRTUAL, labels=3, pooling="last" if family in CAUSAL else 0,
        head={"type": "linear", "layers": tuple(head)},
    )  # fmt: skip
    prompt = bone.bind(own, {"soft_prompt": soft, **weights})
    got = bone.forward(bone.row_encoder(own).encode(TEXTS), [prompt] * len(TEXTS))
    for text, logits in zip(TEXTS, got, strict=True):
        torch.testing.assert_close(logits, _peft_logits(family, wrapped, text), **EXACT)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", PEFT_PREFIX)
def test_prefix_rows_equal_peft(family: str) -> None:
    bone = tiny(family)
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL)
    wrapped = peft.get_peft_model(_classifier(family), config).eval()
    kv_heads, head_dim = bone.shape.kv_heads, bone.shape.head_dim
    size = (VIRTUAL, LAYERS, 2, kv_heads, head_dim)
    prefix = torch.randn(size, generator=torch.Generator().manual_seed(4)) * 2
    wrapped.prompt_encoder["default"].embedding.weight.data.copy_(prefix.reshape(VIRTUAL, -1))
    head, weights = _head_of(family, _head_model(wrapped))
    own = manifest(
        bone, labels=3, pooling="last" if family in CAUSAL else "cls", position_offset=VIRTUAL,
        head={"type": "linear", "layers": tuple(head)},
    )  # fmt: skip
    stack = f"prefix.{bone.prefix_stack}"
    keys, values = prefix.permute(2, 1, 0, 3, 4)
    prompt = bone.bind(own, {f"{stack}.key": keys, f"{stack}.value": values, **weights})
    got = bone.forward(bone.row_encoder(own).encode(TEXTS), [prompt] * len(TEXTS))
    for text, logits in zip(TEXTS, got, strict=True):
        torch.testing.assert_close(logits, _peft_logits(family, wrapped, text), **EXACT)


def _head_model(wrapped: Any) -> Any:
    """The classifier that PEFT really runs: its trainable head is a copy of the original."""
    base = wrapped.base_model
    for name in ("classifier", "pre_classifier", "score"):
        module = getattr(base, name, None)
        if module is not None and hasattr(module, "modules_to_save"):
            setattr(base, name, module.modules_to_save["default"])
    return base


def test_grouped_query_attention_is_really_grouped() -> None:
    assert tiny("llama").shape.kv_heads < HEADS
    assert tiny("llama").shape.head_dim != HIDDEN // HEADS
