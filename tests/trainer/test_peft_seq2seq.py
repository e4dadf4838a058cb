"""Adapters of encoder-decoders: the encoder's half of the rows, and the layers that PEFT gives the decoder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from torch import Tensor

from backbone import load_backbone
from prompt_store import DecoderInput, VerbalizerHead, decode_prompt, encode_prompt
from tests.backbone.families import POSITIONS
from tests.backbone.prompts import manifest
from tests.backbone.seq2seq import T5S, checkpoint, tokenizer
from tests.trainer.peft_folders import LONG, TEXTS, VIRTUAL, load
from tests.trainer.test_peft_export import page_of, quiet, remade
from tests.trainer.test_peft_import import NEAR, ours
from tests.trainer.test_peft_refused import said
from trainer.errors import AdapterError
from trainer.peft_export import export_peft
from trainer.peft_import import Choices, Imported, import_peft
from trainer.peft_tensors import decoder_slots

WORDS = {"yes": ["good", "great"], "no": ["bad"]}


def adapter(folder: Path, family: str, kind: str, **more: Any) -> Any:
    """As tests.trainer.peft_folders.adapter does it, on an encoder-decoder."""
    common = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": VIRTUAL} | more
    made: dict[str, Any] = {
        "PROMPT_TUNING": peft.PromptTuningConfig, "P_TUNING": peft.PromptEncoderConfig,
        "PREFIX_TUNING": peft.PrefixTuningConfig, "MULTITASK_PROMPT_TUNING": peft.MultitaskPromptTuningConfig,
    }  # fmt: skip
    if kind == "P_TUNING":
        common["encoder_hidden_size"] = 11
    if kind == "MULTITASK_PROMPT_TUNING":
        common |= {"num_tasks": 3, "num_ranks": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = hf.AutoModelForSeq2SeqLM.from_pretrained(checkpoint(family))
        torch.manual_seed(8)
        wrapped = peft.get_peft_model(base, made[kind](**common)).eval()
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad or "prefix_task" in name:
                torch.nn.init.normal_(parameter, std=1.5)
        wrapped.save_pretrained(str(folder))
    return load(folder, checkpoint(family), "SEQ_2_SEQ_LM")


def first(wrapped: Any, family: str, text: str, **more: Any) -> Tensor:
    """The logits of the words at the first token that PEFT's decoder says; `more` is for the tokenizer."""
    given = dict(tokenizer(family)(text, return_tensors="pt", return_token_type_ids=False, **more))
    begin = wrapped.config.decoder_start_token_id
    start = given["input_ids"][:, -1:] if begin is None else torch.tensor([[begin]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if wrapped.peft_config["default"].peft_type == "MULTITASK_PROMPT_TUNING":
            # Its forward gives the decoder the other half, which generate() never does.
            done = wrapped.generate(
                **given, task_ids=torch.tensor([1]), max_new_tokens=1, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
            scores = done.logits[0][0]
        else:
            scores = wrapped(**given, decoder_input_ids=start).logits[0, -1]
    before = "▁" if family in T5S else "Ġ"
    ids = [
        tokenizer(family).convert_tokens_to_ids([before + word for word in group]) for group in WORDS.values()
    ]
    return torch.stack([scores[group].mean() for group in ids])


@pytest.mark.parametrize(
    ("family", "kind", "more"),
    [
        ("t5", "PROMPT_TUNING", {}), ("bart", "P_TUNING", {}), ("t5", "MULTITASK_PROMPT_TUNING", {}),
        ("mbart", "PROMPT_TUNING", {}),
        # T5's heads are narrower than its width divided by their number: whoever trains a prefix must say so.
        ("t5", "PREFIX_TUNING", {"token_dim": 15}), ("bart-even", "PREFIX_TUNING", {}),
        # PEFT takes the encoder's number of layers, and fails on a decoder that has more, if nobody says another.
        ("bart-deep", "PREFIX_TUNING", {"num_layers": 4}), ("bart-deep", "PREFIX_TUNING", {"num_layers": 7}),
        ("bart-even", "PREFIX_TUNING", {"num_layers": 2}),
    ],
)  # fmt: skip
def test_the_decoders_first_token_is_pefts(
    family: str, kind: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = adapter(tmp_path / "it", family, kind, **more)
    task = 1 if kind == "MULTITASK_PROMPT_TUNING" else None
    made = import_peft(tmp_path / "it", Choices(words=WORDS, task_index=task))
    want = torch.stack([first(wrapped, family, text) for text in TEXTS])
    torch.testing.assert_close(torch.stack(ours(made, checkpoint(family), TEXTS)), want, **NEAR)
    assert want.std(dim=0).min() > 0.01
    # And back: the same logits from PEFT, the same tensors from what it is given.
    done = export_peft(made.data, tmp_path / "out", backbone=str(checkpoint(family)))
    assert done.task_type == "SEQ_2_SEQ_LM"
    again = import_peft(tmp_path / "out", Choices(words=WORDS))
    one, two = decode_prompt(made.data).tensors, decode_prompt(again.data).tensors
    assert all(np.array_equal(one[name], two[name]) for name in one.keys() | two.keys())
    page = page_of(tmp_path / "out", monkeypatch)
    for text, row in zip(TEXTS, want, strict=True):
        torch.testing.assert_close(quiet(page, text), row, **NEAR)


@pytest.mark.parametrize(
    ("virtual", "limit"), [(VIRTUAL, POSITIONS - 4), (VIRTUAL, POSITIONS), (60, POSITIONS)]
)
def test_a_decoders_prefix_takes_no_places_of_the_text(
    virtual: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder reads all of its positions, however many of the decoder's the prefix has taken."""
    wrapped = adapter(tmp_path / "it", "bart-even", "PREFIX_TUNING", num_virtual_tokens=virtual)
    made = import_peft(tmp_path / "it", Choices(words=WORDS, max_tokens=limit))
    want = first(wrapped, "bart-even", LONG, truncation=True, max_length=limit)
    torch.testing.assert_close(ours(made, checkpoint("bart-even"), (LONG,))[0], want, **NEAR)
    shorter = first(wrapped, "bart-even", LONG, truncation=True, max_length=limit - 1)
    assert not torch.allclose(shorter, want, atol=1e-3)
    export_peft(made.data, tmp_path / "out", backbone=str(checkpoint("bart-even")))
    torch.testing.assert_close(quiet(page_of(tmp_path / "out", monkeypatch), LONG), want, **NEAR)


@pytest.mark.parametrize(("kind", "more"), [("PROMPT_TUNING", {}), ("PREFIX_TUNING", {"token_dim": 15})])
def test_relative_positions_do_not_end(
    kind: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 has no table of positions: it reads what the caller's tokenizer leaves, and as trained if nobody says."""
    wrapped = adapter(tmp_path / "it", "t5", kind, **more)
    for limit, given in ((150, 150), (POSITIONS, None)):
        made = import_peft(tmp_path / "it", Choices(words=WORDS, max_tokens=given))
        want = first(wrapped, "t5", LONG, truncation=True, max_length=limit)
        torch.testing.assert_close(ours(made, checkpoint("t5"), (LONG,))[0], want, **NEAR)
        shorter = first(wrapped, "t5", LONG, truncation=True, max_length=limit - 1)
        assert not torch.allclose(shorter, want, atol=1e-4)
        assert any("--max-length" in note for note in made.notes) is (given is None)
        export_peft(made.data, tmp_path / str(limit), backbone=str(checkpoint("t5")))
        torch.testing.assert_close(quiet(page_of(tmp_path / str(limit), monkeypatch), LONG), want, **NEAR)
    far = import_peft(tmp_path / "it", Choices(words=WORDS, max_tokens=100_000))
    assert any("and not at 100000" in note for note in far.notes)


@pytest.mark.parametrize(("learned", "layers"), [(4, 2), (4, 4), (5, 5), (5, 2), (1, 1)])
def test_the_decoders_layers_are_those_that_peft_splits_off(learned: int, layers: int) -> None:
    """PEFT's own two lines, on numbers that say which layer they are."""
    slots = torch.arange(learned).repeat_interleave(2)  # key and value of each learned layer
    parts = torch.cat([slots, slots]).split(4)
    assert [int(part[0]) for part in parts[:layers]] == decoder_slots(learned, layers)
    assert all(part[0] == part[1] for part in parts[:layers])


@pytest.mark.parametrize("family", ["t5", "bart-even", "bart-deep"])
def test_a_decoders_prefix_of_any_layers_is_exported(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5's four encoder layers would give two of its decoder's layers, and all of bart-deep's, too few of their own."""
    bone = load_backbone(str(checkpoint(family)), device="cpu", dtype="float32", kernels="off")
    own, random = bone.shape.stack("decoder"), np.random.default_rng(3)
    size = (own.layers, VIRTUAL, own.kv_heads, own.head_dim)
    keys, values = random.normal(size=(2, *size)).astype(np.float32)
    written = manifest(
        bone, template="{text} {mask}", head=VerbalizerHead(words=(("good", "great"), ("bad",))), pooling="mask",
        decoder=DecoderInput(reads="start", position_offset=VIRTUAL),
    )  # fmt: skip
    data = encode_prompt(written, {"prefix.decoder.key": keys, "prefix.decoder.value": values})
    export_peft(data, tmp_path / "out", backbone=str(checkpoint(family)))
    page = page_of(tmp_path / "out", monkeypatch)
    made = Imported(data, decode_prompt(data).manifest, ())
    want = torch.stack(ours(made, checkpoint(family), TEXTS))
    torch.testing.assert_close(torch.stack([quiet(page, text) for text in TEXTS]), want, **NEAR)
    again = import_peft(tmp_path / "out", Choices(words=WORDS))
    for name, array in decode_prompt(data).tensors.items():
        np.testing.assert_array_equal(decode_prompt(again.data).tensors[name], array)


def test_other_models_are_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "t5", "PROMPT_TUNING")
    from tests.trainer.peft_folders import base

    assert "is no encoder-decoder" in said(tmp_path / "it", Choices(words=WORDS, backbone=str(base("gpt2"))))


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
@pytest.mark.parametrize(("family", "width"), [("bart-even", None), ("t5", 15)])
def test_a_classifier_that_peft_cannot_run_is_said_to_be_pefts_fault(
    kind: Any, family: str, width: int | None, tmp_path: Path
) -> None:
    more = {"token_dim": width} if width and kind is peft.PrefixTuningConfig else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint(family), num_labels=3)
        wrapped = peft.get_peft_model(base, kind(task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL, **more))
        wrapped.save_pretrained(str(tmp_path / "it"))
        with pytest.raises((NotImplementedError, AttributeError, ValueError)):
            wrapped.eval()(**tokenizer(family)(TEXTS[0], return_tensors="pt", return_token_type_ids=False))
    assert "PEFT itself cannot run virtual tokens" in said(tmp_path / "it")


def test_what_pefts_encoder_decoders_cannot_hold(tmp_path: Path) -> None:
    adapter(tmp_path / "it", "bart-even", "PREFIX_TUNING")
    data = import_peft(tmp_path / "it", Choices(words=WORDS)).data
    tensors = decode_prompt(data).tensors
    cases = {
        "another state": remade(data, decoder={"reads": "copy", "position_offset": VIRTUAL}),
        "shifts the decoder": remade(data, decoder={"reads": "start", "position_offset": 0}),
        "calibration": remade(data, calibration={"temperature": 2.0}),
        "only the decoder's own attention": encode_prompt(
            decode_prompt(data).manifest,
            {name.replace("decoder", "cross"): array for name, array in tensors.items()},
        ),
    }
    for words, changed in cases.items():
        with pytest.raises(AdapterError) as caught:
            export_peft(changed, tmp_path / "out", backbone=str(checkpoint("bart-even")))
        assert words in str(caught.value)
        assert not (tmp_path / "out").exists()
