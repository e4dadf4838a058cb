"""Imported adapters answer as PEFT does: logits of PEFT's own folders, loaded by PEFT and imported here."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbone import Backbone, load_backbone
from prompt_store import decode_prompt
from tests.backbone.families import CAUSAL, FAMILIES, HEADS, HIDDEN, LAYERS, POSITIONS
from tests.trainer.peft_folders import (
    LABELS,
    LONG,
    PAIRS,
    TEXTS,
    VIRTUAL,
    WINDOW,
    adapter,
    base,
    load,
    logits,
)
from trainer.errors import AdapterError
from trainer.peft_import import Choices, Imported, import_peft

NEAR = {"atol": 1e-5, "rtol": 1e-5}
ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "albert", "modernbert")
SOFT = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
WITHOUT_PREFIX = ("albert", "modernbert")  # PEFT cannot run one there


@functools.cache
def backbone(where: Path) -> Backbone:
    return load_backbone(str(where), device="cpu", dtype="float32", kernels="off")


def ours(
    made: Imported, where: Path, texts: tuple[str, ...], pairs: tuple[str, ...] | None = None
) -> list[Tensor]:
    bone, prompt = backbone(where), decode_prompt(made.data)
    rows = bone.row_encoder(prompt.manifest).encode(texts, pairs)
    with torch.no_grad():
        return bone.forward(rows, [bone.load_prompt(prompt)] * len(rows))


def check(made: Imported, wrapped: Any, where: Path) -> None:
    """One text alone, pairs, and a text that is cut at the model's last position; all in one batch here."""
    window = WINDOW if "qwen3" in where.name and made.manifest.method == "peft-prefix-tuning" else POSITIONS
    limit = window - VIRTUAL
    texts = (*TEXTS, LONG)
    want = [logits(wrapped, where, text, truncation=True, max_length=limit) for text in texts]
    got = ours(made, where, texts)
    want += [logits(wrapped, where, text, pair) for text, pair in zip(TEXTS, PAIRS, strict=True)]
    got += ours(made, where, TEXTS, PAIRS)
    torch.testing.assert_close(torch.stack(got), torch.stack(want), **NEAR)
    # Prompts that did nothing would agree just as well.
    assert torch.stack(want).std(dim=0).min() > 0.01


# The three kinds of soft prompt are the same rows to the model: each family has one of them, and a prefix.
CASES = [(SOFT[at % 3], family) for at, family in enumerate((*ENCODERS, *CAUSAL))]
CASES += [("PREFIX_TUNING", family) for family in (*ENCODERS, *CAUSAL) if family not in WITHOUT_PREFIX]


NETWORKS: list[tuple[str, str, dict[str, object]]] = [
    ("PREFIX_TUNING", "bert", {"prefix_projection": True, "encoder_hidden_size": 13}),
    ("PREFIX_TUNING", "llama", {"prefix_projection": True, "encoder_hidden_size": 13}),
    (
        "P_TUNING",
        "bert",
        {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 2, "encoder_dropout": 0.0},
    ),
    (
        "P_TUNING",
        "gpt2",
        {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1, "encoder_dropout": 0.0},
    ),
]


@pytest.mark.parametrize(("kind", "family", "more"), NETWORKS)
def test_a_network_is_folded_as_peft_folds_it(
    kind: str, family: str, more: dict[str, object], tmp_path: Path
) -> None:
    where = base(family)
    wrapped = adapter(tmp_path / "it", kind, family, **more)
    check(import_peft(tmp_path / "it", Choices()), wrapped, where)


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_sequence_classifier_gives_pefts_logits(kind: str, family: str, tmp_path: Path) -> None:
    where = base(family)
    wrapped = adapter(tmp_path / "it", kind, family)
    task = 1 if kind == "MULTITASK_PROMPT_TUNING" else None
    made = import_peft(tmp_path / "it", Choices(task_index=task))
    assert len(made.manifest.labels) == LABELS
    check(made, wrapped, where)


@pytest.mark.parametrize(
    ("kind", "family"),
    [("PROMPT_TUNING", "gpt2"), ("P_TUNING", "llama"), ("MULTITASK_PROMPT_TUNING", "gpt2"), ("CPT", "llama"),
     ("CPT", "gpt2"), ("PREFIX_TUNING", "llama"), ("PREFIX_TUNING", "gpt2")],
)  # fmt: skip
def test_a_language_model_scores_the_words_as_peft_does(kind: str, family: str, tmp_path: Path) -> None:
    where = base(family)
    wrapped = adapter(tmp_path / "it", kind, family, "CAUSAL_LM")
    words = {"yes": ["good", "great"], "no": ["bad"], "maybe": ["fine"]}
    task = 1 if kind == "MULTITASK_PROMPT_TUNING" else None
    made = import_peft(tmp_path / "it", Choices(words=words, task_index=task))
    assert made.manifest.labels == ("yes", "no", "maybe")
    tokenizer = hf.AutoTokenizer.from_pretrained(where)
    ids = [tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in group]) for group in words.values()]
    texts = (*TEXTS, LONG)
    limit = POSITIONS - VIRTUAL
    want = [logits(wrapped, where, text, truncation=True, max_length=limit) for text in texts]
    expected = torch.stack([torch.stack([row[group].mean() for group in ids]) for row in want])
    torch.testing.assert_close(torch.stack(ours(made, where, texts)), expected, **NEAR)
    assert expected.std(dim=0).min() > 0.01


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_layers_that_the_model_does_not_have_are_left_out(family: str, tmp_path: Path) -> None:
    where = base(family)
    wrapped = adapter(tmp_path / "it", "PREFIX_TUNING", family, num_layers=LAYERS + 2)
    check(import_peft(tmp_path / "it", Choices()), wrapped, where)


@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_a_pooler_of_the_configurations_kind(act: str, tmp_path: Path) -> None:
    where = base("deberta-v2", pooler_hidden_act=act)
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "deberta-v2", on=where, modules_to_save=["pooler"])
    made = import_peft(tmp_path / "it", Choices())
    assert made.manifest.head.layers[0].activation == act  # type: ignore[union-attr]
    check(made, wrapped, where)


def test_a_window_that_no_layer_has_cuts_nothing(tmp_path: Path) -> None:
    where = tmp_path / "base"
    shutil.copytree(base("qwen3"), where)
    config = json.loads((where / "config.json").read_text())
    config |= {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention"] * LAYERS,
    }
    (where / "config.json").write_text(json.dumps(config))
    wrapped = adapter(tmp_path / "it", "PREFIX_TUNING", "qwen3", on=where)
    made = import_peft(tmp_path / "it", Choices(max_tokens=WINDOW + 20))
    want = logits(wrapped, where, LONG, truncation=True, max_length=WINDOW + 20)
    torch.testing.assert_close(ours(made, where, (LONG,))[0], want, **NEAR)
    assert not any("window" in note for note in made.notes)


def test_words_around_the_text_are_pefts_too(tmp_path: Path) -> None:
    where = base("llama")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "llama", "CAUSAL_LM")
    made = import_peft(
        tmp_path / "it",
        Choices(words={"a": ["good"], "b": ["bad"]}, template="the film : {text} was it {mask}"),
    )
    tokenizer = hf.AutoTokenizer.from_pretrained(where)
    row = logits(wrapped, where, f"the film : {TEXTS[0]} was it")
    want = row[tokenizer.convert_tokens_to_ids(["Ġgood", "Ġbad"])]
    torch.testing.assert_close(ours(made, where, TEXTS[:1])[0], want, **NEAR)


@pytest.mark.parametrize(("kind", "family"), [("PROMPT_TUNING", "llama"), ("PREFIX_TUNING", "opt")])
def test_a_trained_language_model_head_is_kept_at_the_words(kind: str, family: str, tmp_path: Path) -> None:
    where = base(family)
    wrapped = adapter(tmp_path / "it", kind, family, "CAUSAL_LM", modules_to_save=["lm_head"])
    words = {"yes": ["good", "great"], "no": ["bad"]}
    made = import_peft(tmp_path / "it", Choices(words=words, template="the film : {text} was it {mask}"))
    assert made.manifest.head.type == "linear"
    tokenizer = hf.AutoTokenizer.from_pretrained(where)
    ids = [tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in group]) for group in words.values()]
    rows = [logits(wrapped, where, f"the film : {text} was it") for text in TEXTS]
    want = torch.stack([torch.stack([row[group].mean() for group in ids]) for row in rows])
    torch.testing.assert_close(torch.stack(ours(made, where, TEXTS)), want, **NEAR)
    assert want.std(dim=0).min() > 0.01


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_a_base_model_of_another_depth_is_said(kind: str, tmp_path: Path) -> None:
    """PEFT takes a prefix of more layers than the model has, and a soft prompt of any: neither says so."""
    where = base("bert", num_hidden_layers=LAYERS - 1)
    adapter(tmp_path / "it", kind, "bert")
    assert not any("layers" in note for note in import_peft(tmp_path / "it").notes)
    notes = import_peft(tmp_path / "it", Choices(backbone=str(where))).notes
    assert any(f"trained on {LAYERS} layers" in note for note in notes)


def test_a_configuration_that_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    file = tmp_path / "it" / "adapter_config.json"
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert import_peft(tmp_path / "it").manifest.method == "peft-prompt-tuning"


def test_modernbert_averages_over_virtual_tokens_too(tmp_path: Path) -> None:
    where = base("modernbert", classifier_pooling="mean")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "modernbert", on=where)
    made = import_peft(tmp_path / "it", Choices())
    assert made.manifest.pooling == "row"
    check(made, wrapped, where)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype, tmp_path: Path) -> None:
    where = base("bert")
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    file = tmp_path / "it" / "adapter_model.safetensors"
    narrow = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(narrow, file)
    made = import_peft(tmp_path / "it", Choices())
    kept = decode_prompt(made.data).tensors["soft_prompt"]
    assert kept.dtype == "float32"
    assert (kept == narrow["prompt_embeddings"].float().numpy()).all()
    check(made, load(tmp_path / "it", where), where)


def test_padding_on_the_left_moves_peft_only_where_positions_ignore_the_mask(tmp_path: Path) -> None:
    """The guide says which of PEFT's behaviours is ours: that of a row without padding."""
    for family, same in (("opt", True), ("llama", False), ("gpt2", False), ("qwen3", False)):
        where = base(family)
        wrapped = adapter(tmp_path / family, "PROMPT_TUNING", family)
        alone = logits(wrapped, where, TEXTS[0])
        padded = logits(wrapped, where, TEXTS[0], padding="max_length", padding_side="left", max_length=30)
        made = import_peft(tmp_path / family, Choices())
        torch.testing.assert_close(ours(made, where, TEXTS[:1])[0], alone, **NEAR)
        assert torch.allclose(padded, alone, atol=1e-4) is same
        right = logits(wrapped, where, TEXTS[0], padding="max_length", padding_side="right", max_length=30)
        assert not torch.allclose(right, alone, atol=1e-2)  # PEFT reads a padding token there


def test_unknown_keys_are_kept_and_places_are_not(tmp_path: Path) -> None:
    where = base("bert")
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    config = tmp_path / "it" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"a_key_of_tomorrow": [1]}))
    made = import_peft(tmp_path / "it", Choices())
    torch.testing.assert_close(ours(made, where, TEXTS[:1])[0], logits(wrapped, where, TEXTS[0]), **NEAR)
    record = json.dumps(made.manifest.training)
    assert "a_key_of_tomorrow" in record
    assert str(where) not in record


def test_absent_keys_mean_pefts_defaults(tmp_path: Path) -> None:
    where = base("llama")
    wrapped = adapter(tmp_path / "it", "PREFIX_TUNING", "llama")
    config = tmp_path / "it" / "adapter_config.json"
    kept = ("peft_type", "task_type", "num_virtual_tokens", "base_model_name_or_path")
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({key: settings[key] for key in kept}))
    made = import_peft(tmp_path / "it", Choices())
    torch.testing.assert_close(ours(made, where, TEXTS[:1])[0], logits(wrapped, where, TEXTS[0]), **NEAR)


def test_labels_come_from_the_caller_then_the_model_then_nobody(tmp_path: Path) -> None:
    names = tuple("ABCDEFG")
    adapter(tmp_path / "it", "PROMPT_TUNING", "bert")
    assert import_peft(tmp_path / "it", Choices(labels=names)).manifest.labels == names
    made = import_peft(tmp_path / "it", Choices())
    assert made.manifest.labels == tuple(f"LABEL_{at}" for at in range(LABELS))
    assert any("--labels" in note for note in made.notes)
    config = base("bert") / "config.json"
    before = config.read_text()
    try:
        named = json.loads(before) | {
            "id2label": dict(enumerate(names)),
            "label2id": {n: i for i, n in enumerate(names)},
        }
        config.write_text(json.dumps(named))
        assert import_peft(tmp_path / "it", Choices()).manifest.labels == names
    finally:
        config.write_text(before)


def test_the_adapter_may_lie_in_a_subfolder(tmp_path: Path) -> None:
    adapter(tmp_path / "it" / "named", "PROMPT_TUNING", "bert")
    assert import_peft(tmp_path / "it", Choices()).manifest.task_id == "named"


needs_families = pytest.mark.skipif(
    not {"distilbert", "deberta-v2"} <= FAMILIES.keys(),
    reason="THE BACKBONE REFUSES DISTILBERT AND DEBERTA-V2: their adapters are not tested",
)


@needs_families
@pytest.mark.parametrize("family", ["distilbert", "deberta-v2"])
def test_families_without_prefixes(family: str, tmp_path: Path) -> None:
    where = base(family)
    # Of DeBERTa no checkpoint has the pooler: it can only come from the adapter. PEFT cannot read DistilBERT's sizes.
    more: dict[str, Any] = {"modules_to_save": ["pooler"]}
    if family == "distilbert":
        more = {"token_dim": HIDDEN, "num_attention_heads": HEADS}
    wrapped = adapter(tmp_path / "it", "PROMPT_TUNING", family, **more)
    check(import_peft(tmp_path / "it", Choices()), wrapped, where)


@needs_families
def test_debertas_pooler_must_be_saved(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "PROMPT_TUNING", "deberta-v2")
    with pytest.raises(AdapterError, match="draws them at random"):
        import_peft(tmp_path / "it", Choices())
