"""Encoder-decoders against the stock models: encoder, decoder, language-model head and sequence classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from prompt_store import IncompatiblePrompt
from tests.backbone.prompts import tensors
from tests.backbone.seq2seq import FAMILIES, T5S, checkpoint, reading, stock, tiny, tokenizer

TEXTS = (
    "the film was not very good",
    "a great warm book",
    "who",
    "where is the order ? thanks , please never late",
)
EXACT = {"atol": 2e-5, "rtol": 1e-4}
WORDS = (("bad", "terrible"), ("great",))


def encoded(family: str, texts: tuple[str, ...], side: str) -> dict[str, Tensor]:
    """A padded batch of the stock tokenizer; `side` "none" takes one text."""
    own = tokenizer(family)
    if side == "none":
        return dict(own(texts[0], return_tensors="pt", return_token_type_ids=False))
    return dict(
        own(list(texts), return_tensors="pt", padding=True, padding_side=side, return_token_type_ids=False)
    )


# BART counts positions from the first pad: padding on the left changes its own answer.
SIDES = [
    (family, side) for family in FAMILIES for side in ("none", "right", "left")[: 3 if family in T5S else 2]
]


@pytest.mark.parametrize(("family", "side"), SIDES)
def test_encoder_states_equal_the_stock_model(family: str, side: str) -> None:
    bone, texts = tiny(family), TEXTS[:1] if side == "none" else TEXTS
    own = reading(bone, None, pooling="mean")
    got = bone.features(bone.row_encoder(own).encode(texts), [bone.bind(own, tensors(bone))] * len(texts))
    given = encoded(family, texts, side)
    with torch.no_grad():
        states = stock(family).get_encoder()(**given).last_hidden_state
    special = torch.tensor(tokenizer(family).all_special_ids)
    text = ~torch.isin(given["input_ids"], special)  # pooling "mean" averages the text alone
    for at, features in enumerate(got):
        torch.testing.assert_close(features, states[at][text[at]].mean(dim=0), **EXACT)


@pytest.mark.parametrize("reads", ["start", "mask"])
@pytest.mark.parametrize("side", ["none", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_verbalizers_equal_the_stock_language_model_head(family: str, side: str, reads: str) -> None:
    bone, texts = tiny(family), TEXTS[:1] if side == "none" else TEXTS
    template = "{text} it was {mask}" + (" ." if reads == "mask" else "")
    own = reading(bone, reads, template=template, pooling="mask", head={"type": "verbalizer", "words": WORDS})
    got = bone.forward(bone.row_encoder(own).encode(texts), [bone.bind(own, {})] * len(texts))
    mask = "<extra_id_0>" if family in T5S else "<mask>"
    written = tuple(f"{text} it was" + (f"{mask} ." if reads == "mask" else "") for text in texts)
    given = encoded(family, written, side)
    start = stock(family).config.decoder_start_token_id
    start = tokenizer(family).convert_tokens_to_ids("en_XX") if start is None else start
    asked = [start] if reads == "start" else [start, tokenizer(family).convert_tokens_to_ids(mask)]
    with torch.no_grad():
        logits = stock(family)(**given, decoder_input_ids=torch.tensor([asked] * len(texts))).logits[:, -1]
    before = "▁" if family in T5S else "Ġ"
    ids = [tokenizer(family).convert_tokens_to_ids([before + word for word in group]) for group in WORDS]
    want = torch.stack([logits[:, group].mean(dim=1) for group in ids], dim=1)
    torch.testing.assert_close(torch.stack(got), want, **EXACT)


def test_bart_fills_its_mask_as_the_stock_model_does() -> None:
    """Lewis et al. 2020: the decoder reads the corrupted text shifted right, and the mask is read in its own place."""
    bone, own_tokenizer = tiny("bart"), tokenizer("bart")
    template = "{text} it was {mask} ."
    own = reading(
        bone, "copy", template=template, pooling="mask", head={"type": "verbalizer", "words": WORDS}
    )
    got = bone.forward(bone.row_encoder(own).encode(TEXTS), [bone.bind(own, {})] * len(TEXTS))
    ids = [own_tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in group]) for group in WORDS]
    for text, logits in zip(TEXTS, got, strict=True):
        given = own_tokenizer(f"{text} it was<mask> .", return_tensors="pt")
        at = given.input_ids[0].tolist().index(own_tokenizer.mask_token_id)
        with torch.no_grad():
            scores = stock("bart")(given.input_ids).logits[0, at]
        torch.testing.assert_close(logits, torch.stack([scores[group].mean() for group in ids]), **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("paired", [False, True])
def test_sequence_classifiers_equal_the_stock_ones(family: str, paired: bool) -> None:
    torch.manual_seed(5)
    auto: Any = hf.AutoModelForSequenceClassification
    model = auto.from_pretrained(checkpoint(family), num_labels=3).eval()
    for parameter in model.classification_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    dense, out = model.classification_head.dense, model.classification_head.out_proj
    hidden = dense.in_features
    layers = (
        {"in_features": hidden, "out_features": hidden, "activation": "tanh"},
        {"in_features": hidden, "out_features": 3},
    )
    bone = tiny(family)
    own = reading(
        bone, "copy", labels=3, template="{text} {text_pair}" if paired else "{text}",
        pooling=-2 if family == "mbart" else "last",  # the last </s>, behind which mBART has its language's code
        head={"type": "linear", "layers": layers},
    )  # fmt: skip
    weights = {
        "head.0.weight": dense.weight,
        "head.0.bias": dense.bias,
        "head.1.weight": out.weight,
        "head.1.bias": out.bias,
    }
    pairs = tuple(reversed(TEXTS)) if paired else None
    got = bone.forward(bone.row_encoder(own).encode(TEXTS, pairs), [bone.bind(own, weights)] * len(TEXTS))
    for at, logits in enumerate(got):
        given = tokenizer(family)(
            *((TEXTS[at],) if pairs is None else (TEXTS[at], pairs[at])), return_tensors="pt",
            return_token_type_ids=False,
        )  # fmt: skip
        with torch.no_grad():
            torch.testing.assert_close(logits, model(**given).logits[0], **EXACT)


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    bone = tiny("t5")
    verbalizer = {"type": "verbalizer", "words": WORDS}
    own = reading(bone, None, template="{text} {mask}", pooling="mask", head=verbalizer)
    with pytest.raises(IncompatiblePrompt, match=r"set decoder\.reads to"):
        bone.bind(own, {})
    early = reading(bone, "start", template="{text} {mask} .", pooling="mask", head=verbalizer)
    with pytest.raises(IncompatiblePrompt, match="must be the last part"):
        bone.row_encoder(early)
    plain = reading(bone, None)
    with pytest.raises(IncompatiblePrompt, match="set the manifest's decoder"):
        bone.bind(plain, tensors(bone) | {"prefix.cross.key": torch.zeros(2, 1, 3, 5)})


@pytest.mark.parametrize("family", T5S)
def test_t5_in_float16_is_refused(family: str) -> None:
    from backbone import UnsupportedBackbone, load_backbone

    with pytest.raises(UnsupportedBackbone, match="overflows in float16: use --dtype bfloat16"):
        load_backbone(str(checkpoint(family)), device="cpu", dtype="float16")
